"""What a vision tower hands on, and what a projector may ask for."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpn.common.seeded import mix, uniform
from dpn.tokens import Grid


@dataclass(frozen=True)
class Needs:
    """What a projector needs besides tokens.

    Attributes:
        layers: hidden states, each after a share of the layers that the tower's weights have (0
            before the first one); a share beyond the layers that run means the last of these.
        attention: CLS's query and all keys: of the layer whose output the tokens are (`last`), or
            of the one after it (`next`), where there is one.
        cls: CLS itself.
    """

    layers: tuple[float, ...] = ()
    attention: Literal["last", "next"] | None = None
    cls: bool = False

    @property
    def given(self) -> tuple[str, ...]:
        """Fields of `VisualFeatures` that the tower fills."""
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
    """What a projector may look at besides features; none of it depends on answers.

    Attributes:
        instructions: `[t, D]` text embeddings of the instruction that each image belongs to.
        keys: `[I]` uint64 that names each image, whatever its place in the batch.
        training: whether choices are explored.
        seed: of the run.
        step: optimizer step.
    """

    instructions: tuple[Tensor, ...]
    keys: np.ndarray
    training: bool = False
    seed: int = 0
    step: int = 0

    def of_step(self) -> float:
        """A number in [0, 1) for this step, the same for all images and processes."""
        return float(uniform(np.zeros(1, np.uint64), self.seed, self.step)[0])

    def of_cells(self, image: int, cells: int) -> np.ndarray:
        """A number in [0, 1) for each cell of an image, `[cells]`."""
        keys = mix(np.arange(cells, dtype=np.uint64)) ^ self.keys[image]
        return uniform(keys, self.seed, self.step)


@dataclass(frozen=True)
class VisualFeatures:
    """The tokens of a flat list of images, which may differ in size.

    What is optional is there if it was asked for, see `Needs`.

    Attributes:
        tokens: `[sum of h * w, C]` image after image, in raster order.
        grids: (h, w) of each image.
        layers: `[sum of h * w, K, C]` hidden states of K layers.
        cls: `[I, C]`.
        query: `[I, C]` CLS's query, all heads side by side.
        keys: `[sum of 1 + h * w, C]` CLS's key, then those of the tokens, image after image.
        heads: of the tower's attention.
        owners: of tokens that a projector made: which of them holds each of the tower's cells, -1
            if none does; None where they stand for no cells in particular.
        context: what else a projector may look at.
    """

    tokens: Tensor
    grids: tuple[Grid, ...]
    layers: Tensor | None = None
    cls: Tensor | None = None
    query: Tensor | None = None
    keys: Tensor | None = None
    heads: int = 0
    owners: tuple[np.ndarray | None, ...] | None = None
    context: ImageContext | None = None

    def per_image(self) -> tuple[Tensor, ...]:
        """`[h * w, C]` of each image."""
        return self.tokens.split([h * w for h, w in self.grids])

    def by_grid(self) -> list["ImageGroup"]:
        """The images, those of one grid side by side."""
        members: dict[Grid, list[int]] = {}
        for i, grid in enumerate(self.grids):
            members.setdefault(grid, []).append(i)
        cells = [h * w for h, w in self.grids]
        sizes = {
            "tokens": cells,
            "layers": cells,
            "cls": [1] * len(cells),
            "query": [1] * len(cells),
            "keys": [1 + n for n in cells],
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
    """S images of one grid of n cells; what was not asked for is empty.

    Attributes:
        members: places among all images.
        grid: of each of them.
        tokens: `[S, n, C]`.
        layers: `[S, n, K, C]`.
        cls: `[S, 1, C]`.
        query: `[S, 1, C]`.
        keys: `[S, 1 + n, C]`.
        heads: of the tower's attention.
    """

    members: tuple[int, ...]
    grid: Grid
    tokens: Tensor
    layers: Tensor = _NONE
    cls: Tensor = _NONE
    query: Tensor = _NONE
    keys: Tensor = _NONE
    heads: int = 1

    @property
    def cells(self) -> int:
        """n."""
        return self.grid[0] * self.grid[1]

    def cls_attention(self, heads: int) -> Tensor:
        """How CLS attends to each token, `[S, heads, n]` in fp32: its query alone, never the full
        map. The softmax is over CLS and tokens.

        Args:
            heads: into how many the width is cut; the tower's own number gives its attention.
        """
        query, keys = (x.float().unflatten(-1, (heads, -1)) for x in (self.query, self.keys))
        scores = torch.einsum("sqhd,snhd->shn", query, keys) * query.shape[-1] ** -0.5
        return scores.softmax(-1)[..., 1:]
