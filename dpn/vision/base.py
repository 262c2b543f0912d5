"""Base classes of the vision towers."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpn.common.errors import SettingError
from dpn.tokens import Grid
from dpn.vision._features import Needs, VisualFeatures


class VisionTower(nn.Module):
    """Base class of vision towers, which turn pixels into visual tokens.

    Attributes:
        image_size: Native height and width in pixels.
        patch_size: Number of pixels that height and width must be multiples of.
        output_size: Width of a visual token, C.
        checkpoint_layers: Whether layers are recomputed in the backward pass of training.
        aligned: Names of the modules that are trained or frozen with the projector, not with the
            tower.
        extras: Whether the tower can provide the additional features of `Needs`.
        has_cls: Whether the tower has a CLS token.
        needs: Additional features that the tower currently provides, see `request`.
        heads: Number of attention heads, if `extras`.
    """

    image_size: int
    patch_size: int
    output_size: int
    checkpoint_layers: bool = False
    aligned: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[bool] = False
    has_cls: ClassVar[bool] = False
    needs: Needs = Needs()
    heads: int = 0

    def request(self, needs: Needs) -> None:
        """Let `features` provide additional features from now on.

        Raises:
            ValueError: If this tower cannot provide them.
        """
        if needs != Needs() and not self.extras:
            raise SettingError(
                f"This projector needs hidden states or attention of the vision tower, which"
                f" {type(self).__name__} does not provide; use a model whose vision tower is vit or"
                " clip, or another projector."
            )
        self.needs = needs

    @property
    def grid(self) -> Grid:
        """Grid of an image of the native size."""
        return self.grid_of(self.image_size, self.image_size)

    def grid_of(self, height: int, width: int) -> Grid:
        """Return the grid of an image of a size in pixels.

        Raises:
            ValueError: If the size is not a multiple of the patch size.
        """
        if height % self.patch_size or width % self.patch_size or not height * width:
            raise SettingError(
                f"An image of {height} x {width} pixels cannot be divided into patches of"
                f" {self.patch_size}; resize it to a multiple in the processor."
            )
        return height // self.patch_size, width // self.patch_size

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """Encode images of one size, `[I, 3, H, W]`.

        Returns:
            `tokens` `[I, h * w, C]`, and the additional features of `needs` by their names.
        """
        raise TypeError(f"{type(self).__name__} does not implement encode")

    def flops(self, grid: Grid) -> int:
        """Return the FLOPs (FMA = 2) of one image whose tokens form `grid`."""
        raise TypeError(f"{type(self).__name__} does not implement flops")

    def run(self, layers: Iterable[nn.Module], hidden: Tensor, *args: Any) -> Tensor:
        """Run layers one after the other, each called with `hidden` and `args`."""
        for layer in layers:
            if self.checkpoint_layers and self.training:
                hidden = checkpoint(layer, hidden, *args, use_reentrant=False)
            else:
                hidden = layer(hidden, *args)
        return hidden

    def features(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> VisualFeatures:
        """Encode images that may differ in size.

        Args:
            pixel_values: Pixels `[I, 3, Hmax, Wmax]`, with each image in the upper left corner.
            sizes: (height, width) of each image in pixels.
        """
        grids = tuple(self.grid_of(*size) for size in sizes)
        named = zip(self.needs.fields, self(pixel_values, sizes), strict=True)
        return VisualFeatures(grids=grids, heads=self.heads, **dict(named))

    def forward(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        """Return the tensors of `features` in the order of `needs.fields`.

        Sharding engines need one call of the module whatever the image sizes, and tensors rather
        than a dictionary as its result.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(sizes):
            groups.setdefault(size, []).append(i)
        if len(groups) == 1:
            height, width = sizes[0]
            encoded = self.encode(pixel_values[:, :, :height, :width])
            return tuple(encoded[name].flatten(0, 1) for name in self.needs.fields)
        parts: list[dict[str, Tensor]] = [{}] * len(sizes)
        for (height, width), members in groups.items():
            encoded = self.encode(pixel_values[members, :, :height, :width])
            for place, i in enumerate(members):
                parts[i] = {name: tensor[place] for name, tensor in encoded.items()}
        return tuple(torch.cat([part[name] for part in parts]) for name in self.needs.fields)


class Transformer(VisionTower):
    """Base class of transformer towers with a CLS token, which can provide all features of
    `Needs`.
    """

    extras: ClassVar[bool] = True
    has_cls: ClassVar[bool] = True

    def encode_layers(
        self,
        layers: list[nn.Module],
        count: int,
        hidden: Tensor,
        *args: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run layers and collect the additional features of `needs`.

        Args:
            layers: All layers in the tower's weights.
            count: Number of layers to run.
            hidden: Hidden states of CLS and the patches, `[I, 1 + h * w, C]`.
            args: Arguments of each layer after `hidden`.

        Returns:
            The last hidden states `[I, 1 + h * w, C]`, and the additional features by their names
            in `VisualFeatures`.
        """
        wanted = [min(round(share * len(layers)), count) for share in self.needs.layers]
        attention_layer = self._attention_layer(len(layers), count)
        states, extras = {0: hidden}, {}
        for i, layer in enumerate(layers[:count]):
            if i == attention_layer:
                extras = self._query_and_keys(layer, hidden)
            hidden = self.run([layer], hidden, *args)
            if i + 1 in wanted:
                states[i + 1] = hidden
        if attention_layer == count:  # this layer does not run, but its query and keys are read
            extras = self._query_and_keys(layers[count], hidden)
        if wanted:
            extras["layers"] = torch.stack([states[i][:, 1:] for i in wanted], 2)
        return hidden, extras

    def split_cls(self, hidden: Tensor, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        """Split the last hidden states `[I, 1 + h * w, C]` into the result of `encode`."""
        if self.needs.cls:
            extras = {**extras, "cls": hidden[:, :1]}
        return {"tokens": hidden[:, 1:], **extras}

    def _attention_layer(self, depth: int, count: int) -> int | None:
        if self.needs.attention is None:
            return None
        return min(count - 1 + (self.needs.attention == "next"), depth - 1)

    @torch.no_grad()
    def _query_and_keys(self, layer: nn.Module, hidden: Tensor) -> dict[str, Tensor]:
        """Compute the CLS query `[I, 1, C]` and all keys `[I, 1 + h * w, C]` of a layer.

        There is no gradient: projectors use them only to select and weight tokens.
        """
        norm, attention = self.attention_of(layer)
        hidden = norm(hidden)
        return {"query": attention.q_proj(hidden[:, :1]), "keys": attention.k_proj(hidden)}

    def attention_of(self, layer: Any) -> tuple[nn.Module, Any]:
        """Return a layer's first norm, and its attention module with `q_proj` and `k_proj`."""
        raise TypeError(f"{type(self).__name__} does not implement attention_of")

    def extra_flops(self, rows: int) -> int:
        """Return the FLOPs (FMA = 2) of the CLS query and the keys of `rows` tokens; 0 if they are
        not requested.
        """
        return 2 * (1 + rows) * self.output_size**2 if self.needs.attention else 0
