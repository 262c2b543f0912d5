"""CLIP's vision transformer, the vision tower of LLaVA-1.5 (arXiv 2103.00020, 2310.03744)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from dpn.common.errors import SettingError
from dpn.common.ranges import AtLeast1, Layers, Pixels
from dpn.tokens import Grid
from dpn.vision.base import Transformer


class CLIP(Transformer):
    """Hugging Face's CLIP. CLS is not among the tokens; layers after the selected one are kept but
    never run.

    The defaults are those of ViT-L/14-336 in LLaVA-1.5.

    Args:
        image_size: Native size in pixels; other sizes get interpolated position embeddings.
        patch_size: Side of a patch in pixels.
        width: Width of a token, C.
        depth: Number of layers in the weights.
        heads: Number of attention heads.
        ffn_size: Width of the FFN.
        select_layer: Index into Hugging Face's `hidden_states` of the output tokens: 0 for those
            before the first layer, i for those after i layers, -1 for the last ones.

    Raises:
        ValueError: If `select_layer` is out of range.
    """

    def __init__(
        self,
        image_size: Pixels = 336,
        patch_size: Pixels = 14,
        width: AtLeast1 = 1024,
        depth: Layers = 24,
        heads: AtLeast1 = 16,
        ffn_size: AtLeast1 = 4096,
        select_layer: int = -2,
    ):
        super().__init__()
        if not -depth - 1 <= select_layer <= depth:
            raise SettingError(
                f"select_layer={select_layer} is not one of the {depth + 1} hidden states of a CLIP"
                f" of {depth} layers; choose one from {-depth - 1} to {depth}."
            )
        self.image_size, self.patch_size, self.output_size = image_size, patch_size, width
        self.heads = heads
        self.model = build_clip(image_size, patch_size, width, depth, heads, ffn_size)
        self.layers_run = select_layer % (depth + 1)
        for unused in (*self.model.encoder.layers[self.layers_run :], self.model.post_layernorm):
            unused.requires_grad_(False)

    def flops(self, grid: Grid) -> int:
        """Return the FLOPs of the patch embedding and the layers that run, CLS included."""
        patches = grid[0] * grid[1]
        layers = clip_flops(self.model.config, patches, patches + 1, self.layers_run)
        return layers + self.extra_flops(patches + 1)

    def attention_of(self, layer: Any) -> tuple[nn.Module, Any]:
        return layer.layer_norm1, layer.self_attn

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        grid = self.grid_of(*pixels.shape[-2:])
        patches = self.model.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        cls = self.model.embeddings.class_embedding.expand(len(pixels), 1, -1)
        hidden = torch.cat([cls, patches], 1) + position_embeddings(self.model, grid)
        hidden = self.model.pre_layrnorm(hidden)  # [I, 1 + h * w, C]
        layers = list(self.model.encoder.layers)
        hidden, extras = self.encode_layers(layers, self.layers_run, hidden, None)
        return self.split_cls(hidden, extras)


def build_clip(
    image_size: int, patch_size: int, width: int, depth: int, heads: int, ffn_size: int
) -> Any:
    """Build Hugging Face's CLIP vision model with random weights.

    Some releases of transformers nest it under `vision_model`; the inner model is returned, so that
    parameter names are the same in all of them.
    """
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=ffn_size,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        attn_implementation="sdpa",
    )
    clip = CLIPVisionModel(config)
    return getattr(clip, "vision_model", clip)


def position_embeddings(clip: Any, grid: Grid, antialias: bool = False) -> Tensor:
    """Return the position embeddings of CLS and of the patches of a grid, `[1 + h * w, C]`.

    For grids other than the native one they are resized in fp32, whatever the weights' precision.
    """
    table = clip.embeddings.position_embedding.weight
    side = math.isqrt(len(table) - 1)
    if grid == (side, side):
        return table
    native = table[1:].float().T.reshape(1, -1, side, side)
    resized = F.interpolate(native, grid, mode="bicubic", antialias=antialias)
    return torch.cat([table[:1], resized[0].flatten(1).T.to(table.dtype)])


def clip_flops(config: CLIPVisionConfig, patches: int, rows: int, layers: int) -> int:
    """Return the FLOPs (FMA = 2) of the patch embedding and of `layers` layers on `rows` tokens;
    norms and activations are not counted.
    """
    d, m, n = config.hidden_size, config.intermediate_size, rows
    patch = 2 * patches * d * 3 * config.patch_size**2
    return patch + layers * (2 * n * (4 * d * d + 2 * d * m) + 4 * n * n * d)
