"""What projectors that leave fewer tokens share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from dpn.projectors.base import Projector, ProjectorSizes
from dpn.projectors.mlp import mlp, mlp_flops
from dpn.tokens import Grid
from dpn.vision import ImageContext, ImageGroup, VisualFeatures


class Rows(NamedTuple):
    """What is left of one image.

    Attributes:
        tokens: `[m, C]`.
        grid: 1 x m if it is none.
        owner: see `VisualFeatures.owners`.
    """

    tokens: Tensor
    grid: Grid
    owner: np.ndarray | None = None


class ReducingProjector(Projector):
    """LLaVA's MLP on fewer tokens than the tower gave.

    Args:
        keep: share of the tower's tokens that is left, to the nearest token but at least one (the
            share of visual MACs is nearly the same).
        depth: linear layers of the MLP.

    Attributes:
        needs_keep: whether there are no numbers of its own that `keep` could leave to.
    """

    needs_keep: ClassVar[bool] = True

    def __init__(
        self,
        keep: float | None = 0.5,
        depth: int = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(**sizes)
        self.keep = keep
        self.layers = mlp(self.input_size, self.output_size, depth)

    def rows(self, cells: int) -> int:
        """How many of so many tokens are left."""
        assert self.keep is not None
        return max(1, round(self.keep * cells))

    def grid_after(self, grid: Grid) -> Grid:
        return 1, self.rows(grid[0] * grid[1])

    def flops(self, grid: Grid, after: Grid) -> int:
        return mlp_flops(self.layers, after[0] * after[1])

    def project(self, features: VisualFeatures) -> VisualFeatures:
        """The MLP on every token."""
        return replace(features, tokens=self.layers(features.tokens))

    def check(self) -> list[str]:
        """A keep that can not be, or none where there has to be one."""
        if self.keep is None and self.needs_keep:
            return ["`projector.keep` is null; give it, e.g. projector.keep=0.5."]
        return super().check()


def by_grid(
    features: VisualFeatures, reduce: Callable[[ImageGroup], Iterable[Rows]]
) -> VisualFeatures:
    """Reduce images of one grid together; `reduce` gives the rows of each of them."""
    rows: dict[int, Rows] = {}
    for group in features.by_grid():
        rows.update(zip(group.members, reduce(group), strict=True))
    ordered = [rows[i] for i in range(len(rows))]
    return VisualFeatures(
        torch.cat([row.tokens for row in ordered]),
        tuple(row.grid for row in ordered),
        owners=tuple(row.owner for row in ordered),
    )


def chosen(group: ImageGroup, index: Tensor) -> list[Rows]:
    """The tokens `[S, m]` of a group that are kept, as they are."""
    rows = take(group.tokens, index)
    owners = on_host(inverse(index, group.cells))
    return [Rows(x, (1, len(x)), o) for x, o in zip(rows, owners, strict=True)]


def take(x: Tensor, index: Tensor) -> Tensor:
    """`[S, n, C]` at places `[S, m]`, `[S, m, C]`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def inverse(index: Tensor, cells: int) -> Tensor:
    """Which of the rows that were taken from places `[S, m]` holds each cell, `[S, cells]`."""
    row = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return index.new_full((len(index), cells), -1).scatter(1, index, row)


def on_host(owners: Tensor) -> Sequence[np.ndarray | None]:
    """`[S, cells]` as the owners of S images; unknown where a plan works without values."""
    if isinstance(owners, FakeTensor):
        return [None] * len(owners)
    return list(owners.cpu().numpy())


def context_of(features: VisualFeatures) -> ImageContext:
    """What else a projector may look at.

    Raises:
        ValueError: if the features come without it.
    """
    if features.context is None:
        raise ValueError(
            "This projector looks at the instruction, the step or a key of each image; give it"
            " features with a dpn.vision.ImageContext, as the model does."
        )
    return features.context
