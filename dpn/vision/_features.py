"""Inputs of a projector: the features of a vision tower, the extras that a projector can request,
and its context.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpn.common.seeded import mix, uniform
from dpn.tokens import Grid


@dataclass(frozen=True)
class Needs:
    """Features that a projector needs in addition to the visual tokens.

    Attributes:
        layers: Depths of the requested hidden states, each as a share of all layers in the tower's
            weights (0: before the first layer); a share beyond the layers that run stands for the
            last of these.
        attention: Layer whose CLS query and keys are requested: the layer that outputs the tokens
            (`last`), or the one after it (`next`, if it exists).
        cls: Whether the CLS token is requested, if the tower has one.
        one_softmax: Whether that attention has one softmax over the full width instead of one per
            head.
    """

    layers: tuple[float, ...] = ()
    attention: Literal["last", "next"] | None = None
    cls: bool = False
    one_softmax: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields of `VisualFeatures` that the tower fills."""
        wanted = {
            "tokens": True,
            "query": self.attention,
            "keys": self.attention,
            "layers": self.layers,
            "cls": self.cls,
        }
        return tuple(name for name, value in wanted.items() if value)


@dataclass(frozen=True)
class ImageContext:
    """What a projector may read in addition to the features; nothing in it depends on answers.

    Attributes:
        instructions: Text embeddings `[t, D]` of the instruction that each image belongs to.
        keys: Key of each image, uint64 `[I]`, independent of its place in the batch.
        training: Whether choices are sampled.
        seed: Seed of the run.
        step: Optimizer step.
        questions: Last hidden state of each image's instruction, `[I, D]`, if the projector reads
            it.
    """

    instructions: tuple[Tensor, ...]
    keys: np.ndarray
    training: bool = False
    seed: int = 0
    step: int = 0
    questions: Tensor | None = None

    def draw_for_step(self) -> float:
        """Return a random number in [0, 1) for this step, the same for all images and processes."""
        return float(uniform(np.zeros(1, np.uint64), self.seed, self.step)[0])

    def draw_for_cells(self, image: int, cells: int) -> np.ndarray:
        """Return a random number in [0, 1) for each cell of an image, `[cells]`."""
        keys = mix(np.arange(cells, dtype=np.uint64)) ^ self.keys[image]
        return uniform(keys, self.seed, self.step)


@dataclass(frozen=True)
class VisualFeatures:
    """Visual tokens of a flat list of images, which may differ in size.

    Optional features are present if they were requested, see `Needs`.

    Attributes:
        tokens: Visual tokens `[sum of h * w, C]`, image after image, in raster order.
        grids: (h, w) of each image.
        layers: Hidden states of K layers, `[sum of h * w, K, C]`.
        cls: CLS token of each image, `[I, C]`.
        query: CLS query of each image, `[I, C]`, all heads side by side.
        keys: Keys `[sum of 1 + h * w, C]`, image after image: first of CLS, then of the tokens; of
            the tokens alone if `attention` is given.
        attention: Attention that each token receives, fp32 `[sum of h * w]`, of a tower whose
            query of CLS is not given.
        heads: Number of heads of the tower's attention.
        owners: For tokens that a projector made, the token of each image that represents each cell
            of the tower, -1 for none; None if tokens do not represent particular cells.
        context: Context for the projector.
    """

    tokens: Tensor
    grids: tuple[Grid, ...]
    layers: Tensor | None = None
    cls: Tensor | None = None
    query: Tensor | None = None
    keys: Tensor | None = None
    attention: Tensor | None = None
    heads: int = 0
    owners: tuple[np.ndarray | None, ...] | None = None
    context: ImageContext | None = None

    def per_image(self) -> tuple[Tensor, ...]:
        """Return the tokens of each image, `[h * w, C]`."""
        return self.tokens.split([h * w for h, w in self.grids])

    def by_grid(self) -> list["ImageGroup"]:
        """Return the images in groups of equal grid, each stacked into one batch."""
        members: dict[Grid, list[int]] = {}
        for i, grid in enumerate(self.grids):
            members.setdefault(grid, []).append(i)
        cells = [h * w for h, w in self.grids]
        sizes = {
            "tokens": cells,
            "layers": cells,
            "cls": [1] * len(cells),
            "query": [1] * len(cells),
            "keys": cells if self.query is None else [1 + n for n in cells],
            "attention": cells,
        }
        parts = {
            name: tensor.split(size)
            for name, size in sizes.items()
            if (tensor := getattr(self, name)) is not None
        }
        return [
            ImageGroup(
                tuple(own),
                grid,
                heads=self.heads,
                **{name: torch.stack([part[i] for i in own]) for name, part in parts.items()},
            )
            for grid, own in members.items()
        ]


_NONE = torch.empty(0)


@dataclass(frozen=True)
class ImageGroup:
    """S images with the same grid of n cells; features that were not requested are empty.

    Attributes:
        members: Indices of the images among all images.
        grid: Grid of each image.
        tokens: Visual tokens `[S, n, C]`.
        layers: Hidden states of K layers, `[S, n, K, C]`.
        cls: CLS tokens `[S, 1, C]`.
        query: CLS queries `[S, 1, C]`.
        keys: Keys of CLS and the tokens, `[S, 1 + n, C]`; without a query of CLS those of the
            tokens, `[S, n, C]`.
        attention: Attention that each token receives, fp32 `[S, n]`, instead of a query.
        heads: Number of heads of the tower's attention.
    """

    members: tuple[int, ...]
    grid: Grid
    tokens: Tensor
    layers: Tensor = _NONE
    cls: Tensor = _NONE
    query: Tensor = _NONE
    keys: Tensor = _NONE
    attention: Tensor = _NONE
    heads: int = 1

    @property
    def cells(self) -> int:
        """Number of cells of the grid, n."""
        return self.grid[0] * self.grid[1]

    @property
    def token_keys(self) -> Tensor:
        """Keys of the tokens, `[S, n, C]`."""
        return self.keys[:, self.keys.shape[1] - self.cells :]

    def cls_attention(self, heads: int) -> Tensor:
        """Compute the attention of CLS to each token, fp32 `[S, heads, n]`, without the full
        attention map. The softmax includes CLS itself.

        If the features give the attention that tokens receive, it is returned, `[S, 1, n]`.

        Args:
            heads: Number of heads that the width is divided into; with the tower's own number this
                is the tower's attention.
        """
        if self.attention.numel():
            return self.attention[:, None]
        query, keys = (x.float().unflatten(-1, (heads, -1)) for x in (self.query, self.keys))
        scores = torch.einsum("sqhd,snhd->shn", query, keys) * query.shape[-1] ** -0.5
        return scores.softmax(-1)[..., 1:]
