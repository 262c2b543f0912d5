"""A small vision transformer with CLS, trained from scratch: the default model's vision tower."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from dpn.common.ranges import AtLeast1, Layers, NonNegative, Pixels
from dpn.tokens import Grid
from dpn.vision.base import Transformer


class ViT(Transformer):
    """Hugging Face's ViT (arXiv 2010.11929); its last hidden states without CLS are the tokens.

    Args:
        image_size: Native size in pixels; other sizes get interpolated position embeddings.
        patch_size: Side of a patch in pixels.
        width: Width of a token, C.
        depth: Number of layers.
        heads: Number of attention heads.
        ffn_ratio: Width of the FFN in multiples of `width`.
        init_std: Standard deviation of the initial weights. Hugging Face's 0.02 suits larger
            widths; in a narrow tower the position embeddings then outweigh the patch content.
    """

    def __init__(
        self,
        image_size: Pixels = 64,
        patch_size: Pixels = 8,
        width: AtLeast1 = 96,
        depth: Layers = 2,
        heads: AtLeast1 = 4,
        ffn_ratio: AtLeast1 = 4,
        init_std: NonNegative = 0.02,
    ):
        super().__init__()
        self.image_size, self.patch_size, self.output_size = image_size, patch_size, width
        self.heads = heads
        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=ffn_ratio * width,
            image_size=image_size,
            patch_size=patch_size,
            initializer_range=init_std,
            attn_implementation="sdpa",
        )
        self.model = ViTModel(config, add_pooling_layer=False)
        with torch.no_grad():  # Hugging Face's initial values near zero hide a patch's position
            self.model.embeddings.position_embeddings[0, 1:] = sincos_positions(self.grid, width)

    def flops(self, grid: Grid) -> int:
        """Return the FLOPs (FMA = 2) of patch embedding and layers, CLS included; norms and
        activations are not counted.
        """
        config, patches = self.model.config, grid[0] * grid[1]
        d, m, n = config.hidden_size, config.intermediate_size, patches + 1
        patch = 2 * patches * d * 3 * self.patch_size**2
        layer = 2 * n * (4 * d * d + 2 * d * m) + 4 * n * n * d
        return patch + config.num_hidden_layers * layer + self.extra_flops(n)

    def attention_of(self, layer: Any) -> tuple[nn.Module, Any]:
        return layer.layernorm_before, layer.attention

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        native = pixels.shape[-2:] == (self.image_size, self.image_size)
        hidden = self.model.embeddings(pixels, interpolate_pos_encoding=not native)
        layers = list(self.model.layers)
        hidden, extras = self.encode_layers(layers, len(layers), hidden)
        return self.split_cls(self.model.layernorm(hidden), extras)


def sincos_positions(grid: Grid, width: int, base: float = 1000) -> Tensor:
    """Return 2-D sine-cosine position embeddings `[h * w, C]` (MoCo v3, arXiv 2104.02057).

    Args:
        grid: Height and width of the grid.
        width: Width of an embedding, half of it for each axis.
        base: Base of the frequencies, which sets the longest wavelength.
    """
    frequency = base ** (-torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (rows, columns)]
    every = torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1)
    return torch.nn.functional.pad(every, (0, width - every.shape[1]))
