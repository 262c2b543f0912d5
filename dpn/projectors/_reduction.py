"""Base class of projectors that reduce the number of tokens, and helpers for them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from dpn.common.ranges import Layers
from dpn.projectors.base import Projector, ProjectorSizes
from dpn.projectors.mlp import mlp, mlp_flops
from dpn.tokens import Grid
from dpn.vision import ImageContext, ImageGroup, VisualFeatures


class Rows(NamedTuple):
    """Tokens that a projector leaves of one image.

    Attributes:
        tokens: Tokens `[m, C]`.
        grid: Grid of the tokens; 1 x m if they form none.
        owner: Row of each cell of the image's grid, see `VisualFeatures.owners`.
    """

    tokens: Tensor
    grid: Grid
    owner: np.ndarray | None = None


class ReducingProjector(Projector):
    """Applies LLaVA's MLP to fewer tokens than the tower provides.

    Args:
        keep: Share of the tower's tokens that enter the decoder, rounded to the nearest token but
            at least one; the share of visual MACs is nearly the same.
        depth: Number of linear layers of the MLP.

    Attributes:
        needs_keep: Whether `keep` is required, because no other setting determines the number.
    """

    needs_keep: ClassVar[bool] = True

    def __init__(
        self,
        keep: float | None = 0.5,
        depth: Layers = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(**sizes)
        self.keep = keep
        self.layers = mlp(self.input_size, self.output_size, depth)

    def rows(self, cells: int) -> int:
        """Return the number of tokens that are left of `cells` tokens."""
        assert self.keep is not None
        return max(1, round(self.keep * cells))

    def grid_after(self, grid: Grid) -> Grid:
        return 1, self.rows(grid[0] * grid[1])

    def flops(self, grid: Grid, after: Grid) -> int:
        return mlp_flops(self.layers, after[0] * after[1])

    def project(self, features: VisualFeatures) -> VisualFeatures:
        """Apply the MLP to every token."""
        return replace(features, tokens=self.layers(features.tokens))

    def check(self) -> list[str]:
        if self.keep is None and self.needs_keep:
            return ["`projector.keep` is null; give it, e.g. projector.keep=0.5."]
        return super().check()


def by_grid(
    features: VisualFeatures, reduce: Callable[[ImageGroup], Iterable[Rows]]
) -> VisualFeatures:
    """Apply `reduce`, which returns the rows of each image, to all images of one grid together."""
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
    """Keep the tokens of a group at places `[S, m]`, unchanged."""
    rows = take(group.tokens, index)
    owners = on_host(inverse(index, group.cells))
    return [Rows(x, (1, len(x)), o) for x, o in zip(rows, owners, strict=True)]


def take(x: Tensor, index: Tensor) -> Tensor:
    """Select from `[S, n, C]` at places `[S, m]`, `[S, m, C]`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def inverse(index: Tensor, cells: int) -> Tensor:
    """Return the row that holds each cell, `[S, cells]`, given the place `[S, m]` of each row."""
    row = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return index.new_full((len(index), cells), -1).scatter(1, index, row)


def on_host(owners: Tensor) -> Sequence[np.ndarray | None]:
    """Copy owners `[S, cells]` of S images to the host; None under fake tensors."""
    if isinstance(owners, FakeTensor):
        return [None] * len(owners)
    return list(owners.cpu().numpy())


def context_of(features: VisualFeatures) -> ImageContext:
    """Return the context of features.

    Raises:
        ValueError: If the features have none.
    """
    if features.context is None:
        raise ValueError(
            "This projector reads the instruction, the step or a key of each image; give it"
            " features with a dpn.vision.ImageContext, as the model does."
        )
    return features.context
