"""What every vision tower is."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpn.tokens import Grid
from dpn.vision._features import Needs, VisualFeatures


class VisionTower(nn.Module):
    """Pixels to visual tokens, one call for all images of a size.

    Attributes:
        image_size: native height and width in pixels.
        patch_size: pixels that height and width are multiples of.
        output_size: C, width of a token.
        checkpoint_layers: recompute layers in the backward pass of training.
        aligned: modules that are trained or frozen with the projector, not with the tower.
        extras: whether the tower can give what a projector `Needs` besides tokens.
        needs: what it gives, see `ask`.
        heads: of its attention, where `extras`.
    """

    image_size: int
    patch_size: int
    output_size: int
    checkpoint_layers: bool = False
    aligned: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[bool] = False
    needs: Needs = Needs()
    heads: int = 0

    def ask(self, needs: Needs) -> None:
        """From now on, `features` hold what is needed besides tokens.

        Raises:
            ValueError: if this tower has no such things.
        """
        if needs != Needs() and not self.extras:
            raise ValueError(
                f"This projector needs hidden states or attention of the vision tower, which"
                f" {type(self).__name__} does not give; take a model whose vision tower is vit or"
                " clip, or another projector."
            )
        self.needs = needs

    @property
    def grid(self) -> Grid:
        """Tokens of an image of the native size."""
        return self.grid_of(self.image_size, self.image_size)

    def grid_of(self, height: int, width: int) -> Grid:
        """Tokens of an image.

        Raises:
            ValueError: if the size is no multiple of the patch.
        """
        if height % self.patch_size or width % self.patch_size or not height * width:
            raise ValueError(
                f"An image of {height} x {width} pixels can not be cut into patches of"
                f" {self.patch_size};"
                " resize it to a multiple in the processor."
            )
        return height // self.patch_size, width // self.patch_size

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """Images of one size, `[I, 3, H, W]`, to `tokens` `[I, h * w, C]` and what is needed."""
        raise TypeError(f"{type(self).__name__} does not encode")

    def flops(self, grid: Grid) -> int:
        """FLOPs (FMA = 2) of one image whose tokens form `grid`."""
        raise TypeError(f"{type(self).__name__} does not count its FLOPs")

    def run(self, layers: Iterable[nn.Module], hidden: Tensor, *args: Any) -> Tensor:
        """Layers one after the other, each called with `hidden` and `args`."""
        for layer in layers:
            if self.checkpoint_layers and self.training:
                hidden = checkpoint(layer, hidden, *args, use_reentrant=False)
            else:
                hidden = layer(hidden, *args)
        return hidden

    def features(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> VisualFeatures:
        """Encode images that may differ in size.

        Args:
            pixel_values: `[I, 3, Hmax, Wmax]` with each image in the upper left corner.
            sizes: (height, width) of each image in pixels.
        """
        grids = tuple(self.grid_of(*size) for size in sizes)
        named = zip(self.needs.given, self(pixel_values, sizes), strict=True)
        return VisualFeatures(grids=grids, heads=self.heads, **dict(named))

    def forward(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        """The tensors of `features` in the order of `needs.given`; one call whatever the sizes are,
        and no dictionary, as sharding engines want.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(sizes):
            groups.setdefault(size, []).append(i)
        if len(groups) == 1:
            height, width = sizes[0]
            encoded = self.encode(pixel_values[:, :, :height, :width])
            return tuple(encoded[name].flatten(0, 1) for name in self.needs.given)
        parts: list[dict[str, Tensor]] = [{}] * len(sizes)
        for (height, width), members in groups.items():
            encoded = self.encode(pixel_values[members, :, :height, :width])
            for place, i in enumerate(members):
                parts[i] = {name: tensor[place] for name, tensor in encoded.items()}
        return tuple(torch.cat([part[name] for part in parts]) for name in self.needs.given)


class Transformer(VisionTower):
    """A tower of layers with CLS first, which can give what a projector needs besides tokens."""

    extras: ClassVar[bool] = True

    def encode_layers(
        self,
        layers: list[nn.Module],
        count: int,
        hidden: Tensor,
        *args: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run layers and collect what is needed on the way.

        Args:
            layers: all that the weights have.
            count: how many of them run.
            hidden: `[I, 1 + h * w, C]`.
            args: of each layer besides `hidden`.

        Returns:
            The last hidden states `[I, 1 + h * w, C]` and the extras, see `VisualFeatures`.
        """
        wanted = [min(round(share * len(layers)), count) for share in self.needs.layers]
        looked_at = self._attention_layer(len(layers), count)
        states, extras = {0: hidden}, {}
        for i, layer in enumerate(layers[:count]):
            if i == looked_at:
                extras = self._focus(layer, hidden)
            hidden = self.run([layer], hidden, *args)
            if i + 1 in wanted:
                states[i + 1] = hidden
        if looked_at == count:  # a layer that does not run, but sees what is handed on
            extras = self._focus(layers[count], hidden)
        if wanted:
            extras["layers"] = torch.stack([states[i][:, 1:] for i in wanted], 2)
        return hidden, extras

    def split_cls(self, hidden: Tensor, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `encode` returns, of the last hidden states `[I, 1 + h * w, C]`."""
        if self.needs.cls:
            extras = {**extras, "cls": hidden[:, :1]}
        return {"tokens": hidden[:, 1:], **extras}

    def _attention_layer(self, depth: int, count: int) -> int | None:
        if self.needs.attention is None:
            return None
        return min(count - 1 + (self.needs.attention == "next"), depth - 1)

    @torch.no_grad()
    def _focus(self, layer: nn.Module, hidden: Tensor) -> dict[str, Tensor]:
        """CLS's query `[I, 1, C]` and all keys `[I, 1 + h * w, C]` of a layer, without gradient:
        they choose and weigh tokens, and nothing trains them.
        """
        norm, attention = self.attention_of(layer)
        hidden = norm(hidden)
        return {"query": attention.q_proj(hidden[:, :1]), "keys": attention.k_proj(hidden)}

    def attention_of(self, layer: Any) -> tuple[nn.Module, Any]:
        """A layer's first norm, and its attention with `q_proj` and `k_proj`."""
        raise TypeError(f"{type(self).__name__} does not show its attention")

    def extra_flops(self, rows: int) -> int:
        """FLOPs (FMA = 2) of CLS's query and the keys of `rows` tokens, if they are needed."""
        return 2 * (1 + rows) * self.output_size**2 if self.needs.attention else 0
