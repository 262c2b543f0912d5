"""Random tokens: a baseline for pruning methods."""

import numpy as np
import torch

from dpn.projectors._reduction import ReducingProjector, by_grid, chosen, context_of
from dpn.vision import ImageGroup, VisualFeatures


class RandomProjector(ReducingProjector):
    """Keeps a random share of the tokens, in their order, then applies the MLP.

    The draw depends on seed, step, sample and the image's place in it. The arguments are those of
    `ReducingProjector`.
    """

    per_image = True

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        context = context_of(features)

        def draw(group: ImageGroup):
            numbers = np.stack([context.draw_for_cells(i, group.cells) for i in group.members])
            first = numbers.argsort(1)[:, : self.rows(group.cells)]
            return chosen(group, torch.from_numpy(np.sort(first, 1)).to(group.tokens.device))

        return self.project(by_grid(features, draw))
