"""LLaVA-HR's mixture of resolutions: CLIP at a low and ConvNeXt at a high resolution, combined by
adapters (arXiv 2403.03003).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel

from dpn.common.errors import SettingError
from dpn.common.ranges import AtLeast1, Layers, Pixels, Positive
from dpn.tokens import Grid
from dpn.vision.base import VisionTower
from dpn.vision.clip import build_clip, clip_flops, position_embeddings

#: Number of groups of CLIP layers; an adapter follows each group but the last one, which is
#: followed by the merge.
GROUPS = 4


class CLIPConvNeXt(VisionTower):
    """LLaVA-HR's vision tower with two paths.

    The slow path is ConvNeXt on the whole image. The fast path is CLIP on a smaller copy of it,
    with one patch per cell of the slow path's map, but at least of CLIP's native size.

    All CLIP layers run, without CLS, in four equal groups. The slow map is added to the tokens
    after each group: by an adapter, after the last group by the merge. Adapters always run; they
    start as the identity, so weights that were trained without adapters give the same result. The
    defaults are those of LLaVA-HR-7B.

    Args:
        image_size: Native size in pixels, at which the slow path runs.
        patch_size: Stride of the slow path's map in pixels.
        width: Width of the fast path, C.
        depth: Number of layers of the fast path.
        heads: Number of attention heads of the fast path.
        ffn_size: Width of the fast path's FFN.
        fast_image_size: Native size of the fast path in pixels.
        fast_patch_size: Side of a patch of the fast path in pixels.
        slow_depths: Number of blocks in each stage of the slow path.
        slow_dims: Width of each stage of the slow path.
        slow_eps: Epsilon of every norm of the slow path.

    Raises:
        ValueError: If the layers do not form four equal groups, or the stages do not fit together.
    """

    aligned: ClassVar[tuple[str, ...]] = ("merge",)

    def __init__(
        self,
        image_size: Pixels = 1024,
        patch_size: Pixels = 32,
        width: AtLeast1 = 1024,
        depth: Layers = 24,
        heads: AtLeast1 = 16,
        ffn_size: AtLeast1 = 4096,
        fast_image_size: Pixels = 336,
        fast_patch_size: Pixels = 14,
        slow_depths: Sequence[int] = (3, 3, 27, 3),
        slow_dims: Sequence[int] = (192, 384, 768, 1536),
        slow_eps: Positive = 1e-6,
    ):
        super().__init__()
        if depth % GROUPS or not depth:
            raise SettingError(
                f"depth={depth} cannot be divided into {GROUPS} equal groups of layers;"
                f" choose a multiple of {GROUPS}."
            )
        self.image_size, self.patch_size, self.output_size = image_size, patch_size, width
        self.fast = build_clip(fast_image_size, fast_patch_size, width, depth, heads, ffn_size)
        self.slow = build_convnext(patch_size, slow_depths, slow_dims, slow_eps)
        adapters = [Adapter(width, slow_dims[-1]) for _ in range(GROUPS - 1)]
        self.adapters = nn.ModuleList(adapters)
        self.merge = Merge(width, slow_dims[-1])
        self.fast.embeddings.class_embedding.requires_grad_(False)
        for unused in (self.fast.post_layernorm, self.slow.layernorm):
            unused.requires_grad_(False)

    def grid_of(self, height: int, width: int) -> Grid:
        """Return the grid of an image of a size in pixels.

        Raises:
            ValueError: If the image is not square, if its side is not a multiple of the patch size,
                or if its number of cells per side is smaller than that of the fast path's native
                grid and does not divide it.
        """
        config = self.fast.config
        native, cells = config.image_size // config.patch_size, width // self.patch_size
        fits = cells >= native or (cells and native % cells == 0)
        if height != width or width % self.patch_size or not fits:
            smaller = [n * self.patch_size for n in range(1, native + 1) if native % n == 0]
            raise SettingError(
                f"An image of {height} x {width} pixels cannot be encoded at both resolutions;"
                f" resize it in the processor to a square of {', '.join(map(str, smaller))}, or a"
                f" larger multiple of {self.patch_size}."
            )
        return (max(cells, native),) * 2

    def flops(self, grid: Grid) -> int:
        """Return the FLOPs (FMA = 2) of convolutions, linear layers and attention.

        Several image sizes lead to CLIP's native grid. The tower's own grid is counted as an image
        of the tower's native size, any other grid as the image whose slow map has that grid.
        """
        tokens = grid[0] * grid[1]
        side = self.image_size // self.patch_size
        cells = side * side if grid == self.grid else tokens
        d, c = self.output_size, self.slow.config.hidden_sizes[-1]
        gate = 2 * (2 * d + 1) * (d // 2)
        adapter = 2 * cells * (c * c + c * d) + 2 * tokens * (49 * d + d * d) + gate
        merge = 2 * cells * c * d + 2 * tokens * d * d
        return (
            clip_flops(self.fast.config, tokens, tokens, len(self.fast.encoder.layers))
            + convnext_flops(self.slow.config, cells)
            + len(self.adapters) * adapter
            + merge
        )

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        grid = self.grid_of(*pixels.shape[-2:])
        slow = self._slow_map(pixels)
        hidden = self._fast_patches(pixels, grid)
        layers = list(self.fast.encoder.layers)
        group = len(layers) // GROUPS
        for i, join in enumerate([*self.adapters, self.merge]):
            hidden = self.run(layers[i * group : (i + 1) * group], hidden, None)
            hidden = join(hidden, slow, grid)
        return {"tokens": hidden}

    def _slow_map(self, pixels: Tensor) -> Tensor:
        """Encode pixels `[I, 3, H, W]` into the map `[I, c, H / patch, W / patch]`, without
        ConvNeXt's last norm.
        """
        hidden = self.slow.embeddings(pixels)
        for stage in self.slow.encoder.stages:
            hidden = self.run([*stage.downsampling_layer, *stage.layers], hidden)
        return hidden

    def _fast_patches(self, pixels: Tensor, grid: Grid) -> Tensor:
        """Embed the resized pixels `[I, 3, H, W]` as the inputs `[I, h * w, C]` of CLIP's first
        layer.
        """
        side = self.fast.config.patch_size
        size = (grid[0] * side, grid[1] * side)
        small = F.interpolate(pixels.float(), size, mode="bilinear", align_corners=True)
        patches = self.fast.embeddings.patch_embedding(small.to(pixels.dtype))
        positions = position_embeddings(self.fast, grid, antialias=True)[1:]
        return self.fast.pre_layrnorm(patches.flatten(2).transpose(1, 2) + positions)


class Adapter(nn.Module):
    """MR-Adapter: adds the slow path's map to the fast path's tokens, scaled by one gate per image.

    Args:
        width: Width of the fast path, d.
        slow_width: Width of the slow path, c.
    """

    def __init__(self, width: int, slow_width: int):
        super().__init__()
        self.slow_conv = XavierConv(slow_width, slow_width, 1)
        self.slow_proj = ZeroConv(slow_width, width, 1)
        self.fast_conv = XavierConv(width, width, 7, padding=3, groups=width)
        self.fast_proj = ZeroConv(width, width, 1)
        self.gate = nn.Sequential(
            nn.Linear(2 * width, width // 2), nn.GELU(), nn.Linear(width // 2, 1)
        )

    def forward(self, fast: Tensor, slow: Tensor, grid: Grid) -> Tensor:
        """Add the slow map `[I, c, H, W]` to tokens `[I, h * w, d]` of a grid."""
        fast = fast.transpose(1, 2).unflatten(2, grid)  # [I, d, h, w]
        fast = fast + self.fast_proj(F.gelu(self.fast_conv(fast)))
        slow = resize(self.slow_proj(F.gelu(self.slow_conv(slow))), grid)
        means = torch.cat([fast.mean((2, 3)), slow.mean((2, 3))], 1)  # [I, 2 * d]
        gate = self.gate(means).tanh()[:, :, None, None]
        return (fast + slow * gate).flatten(2).transpose(1, 2)


class XavierConv(nn.Conv2d):
    """A convolution that is initialised with Xavier-uniform weights and a bias of zero."""

    def reset_parameters(self) -> None:
        """Initialise; called by PyTorch's constructor, and by Hugging Face for new weights."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroConv(nn.Conv2d):
    """A convolution that is initialised with zero weights and bias."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Merge(nn.Module):
    """Adds the projections of both paths after the last layer.

    Args:
        width: Width of the fast path, d.
        slow_width: Width of the slow path, c.
    """

    def __init__(self, width: int, slow_width: int):
        super().__init__()
        self.fast_proj = nn.Linear(width, width)
        self.slow_proj = nn.Linear(slow_width, width)

    def forward(self, fast: Tensor, slow: Tensor, grid: Grid) -> Tensor:
        """Merge tokens `[I, h * w, d]` of a grid and the slow map `[I, c, H, W]`."""
        slow = self.slow_proj(slow.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fast_proj(fast) + resize(slow, grid).flatten(2).transpose(1, 2)


def resize(slow: Tensor, grid: Grid) -> Tensor:
    """Resize a map `[I, d, H, W]` to the grid of the fast path, which is never coarser."""
    if slow.shape[-2:] == grid:
        return slow
    return F.interpolate(slow, grid, mode="bilinear", align_corners=True)


def build_convnext(
    stride: int, depths: Sequence[int], dims: Sequence[int], eps: float
) -> ConvNextModel:
    """Build Hugging Face's ConvNeXt with random weights.

    Args:
        stride: Stride of the last stage's map in pixels.
        depths: Number of blocks in each stage.
        dims: Width of each stage.
        eps: Epsilon of every norm.
    """
    halvings = len(depths) - 1
    if len(depths) != len(dims) or not depths or stride % 2**halvings:
        raise SettingError(
            f"ConvNeXt's stages do not fit together: {len(depths)} depths, {len(dims)} widths and"
            f" patch_size={stride}; give one width per depth, and a patch_size that can be halved"
            " once per further stage."
        )
    model = ConvNextModel(
        ConvNextConfig(
            patch_size=stride // 2**halvings,
            num_stages=len(depths),
            depths=list(depths),
            hidden_sizes=list(dims),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # Hugging Face uses 1e-6, whatever its config says
            module.eps = eps
    return model


def convnext_flops(config: ConvNextConfig, cells: int) -> int:
    """Return the FLOPs (FMA = 2) of one image whose last map has `cells` cells; norms and
    activations are not counted.
    """
    stages = len(config.depths)
    inputs = [3 * config.patch_size**2, *(4 * d for d in config.hidden_sizes)]
    macs = 0
    for i, (depth, d) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        macs += cells * 4 ** (stages - 1 - i) * d * (inputs[i] + depth * (49 + 8 * d))
    return 2 * macs
