"""`Family`: what `dpn.compress` has to know about a Hugging Face VLM."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from dpn.tokens import Block, Grid

#: Blocks of one image or video, in the order of its tokens.
Image = tuple[Block, ...]


class TowerAttention(NamedTuple):
    """An attention module of a vision tower.

    Attributes:
        path: Path of the module in the inner model.
        heads: Number of heads.
        cls: Whether the first token is CLS.
        patches: Number of its tokens that become one visual token.
    """

    path: str
    heads: int
    cls: bool
    patches: int = 1


class Part(NamedTuple):
    """Visual tokens of a block that stem from one run of the vision tower: those of an image, a
    tile or a frame.

    Attributes:
        block: Index of the block in its image.
        places: Places of the tokens in the block, ascending, `[n]`.
        values: Features of these tokens, `[n, F]`, from those of the tower's patches.
    """

    block: int
    places: np.ndarray
    values: Tensor


class Family:
    """A family of Hugging Face VLMs whose visual tokens are columns of the text model.

    The processor repeats the placeholder id once for each visual token.

    Attributes:
        model_types: Values of `config.model_type`.
        text: Name of the text model in the inner model.
        ids: Names of the config's placeholder ids for `image` and `video`; the first one that
            exists is used.
        single_tiles: Whether the layout is that of single tiles, because only the processor knows
            which tiles belong to which image; then `begins` tells it by the prompt.
    """

    model_types: ClassVar[tuple[str, ...]]
    text: ClassVar[str] = "language_model"
    ids: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": ("image_token_id", "image_token_index"),
        "video": ("video_token_id", "video_token_index"),
    }
    single_tiles: ClassVar[bool] = False

    def placeholders(self, config: Any) -> dict[str, int]:
        """Return the placeholder id for images and, if the model has one, for videos."""
        found: dict[str, int] = {}
        for kind, names in self.ids.items():
            every = (getattr(config, name, None) for name in names)
            if (one := next((x for x in every if isinstance(x, int)), None)) is not None:
                found[kind] = one
        return found

    def layout(
        self, model: Any, kind: str, arguments: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Image]:
        """Return the blocks of each image or video that the vision tower has just encoded.

        Args:
            model: Inner model, whose `get_image_features` or `get_video_features` was called.
            kind: `image` or `video`.
            arguments: Arguments of that call.
            tokens: Number of visual tokens of each part that it returned.
        """
        raise TypeError(f"{type(self).__name__} does not implement layout")

    def begins(self, ids: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """Return which runs of visual tokens begin an image, bool `[R]`; by default all of them.

        Args:
            ids: Token ids of a sample, `[T]`.
            runs: First column of each run, `[R]`.
        """
        return np.ones(len(runs), dtype=bool)

    def reference(self, config: Any) -> Image:
        """Return the blocks of a typical image, for which `keep` is met.

        Args:
            config: Config of the model.
        """
        raise TypeError(f"{type(self).__name__} does not implement reference")

    def attention(self, inner: Any, after: int) -> TowerAttention | None:
        """Return the attention module of the vision tower that tells important tokens from others;
        None if there is none.

        Args:
            inner: Inner model.
            after: 0 for the layer that outputs the visual tokens, 1 for the one after it, if it
                exists.
        """
        return None

    def parts(
        self,
        inner: Any,
        kind: str,
        arguments: Mapping[str, Any],
        images: Sequence[Image],
        patches: Sequence[Tensor],
    ) -> list[list[Part]]:
        """Return the parts of each image, given features of the vision tower's patches. A token
        of several patches gets the mean of theirs; newline tokens are in no part.

        Args:
            inner: Inner model.
            kind: `image` or `video`.
            arguments: Arguments of `get_image_features` or `get_video_features`.
            images: Blocks of each image, see `layout`.
            patches: Features `[K, n, F]` from each call of the attention module, without CLS.
        """
        raise TypeError(f"{type(self).__name__} does not implement parts")

    def refuse(self, config: Any) -> str | None:
        """Return why a checkpoint of this family cannot be compressed; None if it can."""
        return None


class TiledFamily(Family):
    """A family whose images are square tiles of one size, each a block of its own."""

    single_tiles = True

    def tile(self, config: Any) -> Grid:
        """Return the grid of a tile's visual tokens."""
        raise TypeError(f"{type(self).__name__} does not implement tile")

    def layout(
        self, model: Any, kind: str, arguments: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Image]:
        block = Block(self.tile(model.config))
        return [(block,)] * (sum(tokens) // block.rows)

    def parts(
        self,
        inner: Any,
        kind: str,
        arguments: Mapping[str, Any],
        images: Sequence[Image],
        patches: Sequence[Tensor],
    ) -> list[list[Part]]:
        (values,) = patches
        (block,) = images[0]
        side = math.isqrt(values.shape[1] // block.rows)  # of the patches of a token
        height, width = block.grid
        grid = values.view(len(values), height, side, width, side, -1)
        return whole_blocks(grid.mean((2, 4)).flatten(1, 2))

    def reference(self, config: Any) -> Image:
        return (Block(self.tile(config)),) * 13  # twelve tiles and the overview


def whole_blocks(values: Tensor) -> list[list[Part]]:
    """Return one part for each image of one block, given its tokens' features `[I, n, F]`."""
    return [[Part(0, np.arange(len(one)), one)] for one in values]


def square(tokens: int) -> Grid:
    """Return a square grid of `tokens` tokens; 1 x n if they form none."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else (1, tokens)
