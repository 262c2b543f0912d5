"""LLaVA-HR's tower against a naive implementation."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig

from dpn import DPNConfig, DPNForConditionalGeneration
from dpn.vision.clip_convnext import CLIPConvNeXt, build_convnext, convnext_flops

from .conftest import TINY, make_tower

LARGE = {"slow_depths": [3, 3, 27, 3], "slow_dims": [192, 384, 768, 1536]}
XXLARGE = {"slow_depths": [3, 4, 30, 3], "slow_dims": [384, 768, 1536, 3072], "slow_eps": 1e-5}


class Naive:
    """The forward pass of one image with tensors and `torch.nn.functional` only."""

    def __init__(self, weights, settings):
        self.w, self.s = weights, settings

    def of(self, name):
        return self.w[f"{name}.weight"], self.w[f"{name}.bias"]

    def norm(self, x, name, eps):
        weight, bias = self.of(name)
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def norm_channels(self, x, name, eps):
        return self.norm(x.permute(0, 2, 3, 1), name, eps).permute(0, 3, 1, 2)

    def slow(self, pixels):
        eps = self.s["slow_eps"]
        x = F.conv2d(pixels, *self.of("slow.embeddings.patch_embeddings"), stride=4)
        x = self.norm_channels(x, "slow.embeddings.layernorm", eps)
        for stage, depth in enumerate(self.s["slow_depths"]):
            at = f"slow.encoder.stages.{stage}"
            if stage:
                x = self.norm_channels(x, f"{at}.downsampling_layer.0", eps)
                x = F.conv2d(x, *self.of(f"{at}.downsampling_layer.1"), stride=2)
            for block in range(depth):
                name = f"{at}.layers.{block}"
                y = F.conv2d(x, *self.of(f"{name}.dwconv"), padding=3, groups=x.shape[1])
                y = self.norm(y.permute(0, 2, 3, 1), f"{name}.layernorm", eps)
                y = F.gelu(F.linear(y, *self.of(f"{name}.pwconv1")))
                y = F.linear(y, *self.of(f"{name}.pwconv2"))
                x = x + (y * self.w[f"{name}.layer_scale_parameter"]).permute(0, 3, 1, 2)
        return x

    def patches(self, pixels):
        native, patch = self.s["fast_image_size"], self.s["fast_patch_size"]
        size = max(int(pixels.shape[-1] / 32 * patch), native)
        small = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=True)
        weight = self.w["fast.embeddings.patch_embedding.weight"]
        x = F.conv2d(small, weight, stride=patch)
        table = self.w["fast.embeddings.position_embedding.weight"][1:]
        grid = native // patch
        table = table.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        if size != native:
            side = size // patch
            table = F.interpolate(table, (side, side), mode="bicubic", antialias=True)
        return (x + table).flatten(2).transpose(1, 2), size // patch

    def layer(self, x, index):
        at, heads = f"fast.encoder.layers.{index}", self.s["heads"]
        y = self.norm(x, f"{at}.layer_norm1", 1e-5)
        rows, width = y.shape[1:]
        q, k, v = (
            F.linear(y, *self.of(f"{at}.self_attn.{kind}_proj"))
            .reshape(1, rows, heads, width // heads)
            .transpose(1, 2)
            for kind in "qkv"
        )
        mix = (q @ k.transpose(2, 3) / math.sqrt(width // heads)).softmax(-1) @ v
        mix = mix.transpose(1, 2).reshape(1, rows, width)
        x = x + F.linear(mix, *self.of(f"{at}.self_attn.out_proj"))
        y = F.linear(self.norm(x, f"{at}.layer_norm2", 1e-5), *self.of(f"{at}.mlp.fc1"))
        return x + F.linear(y * torch.sigmoid(1.702 * y), *self.of(f"{at}.mlp.fc2"))

    @staticmethod
    def resized(slow, side):
        return F.interpolate(slow, (side, side), mode="bilinear", align_corners=True)

    def adapter(self, x, slow, index, side):
        at, width = f"adapters.{index}", x.shape[-1]
        s = F.gelu(F.conv2d(slow, *self.of(f"{at}.slow_conv")))
        s = self.resized(F.conv2d(s, *self.of(f"{at}.slow_proj")), side)
        s = s.flatten(2).transpose(1, 2)
        y = x.transpose(1, 2).reshape(1, width, side, side)
        y = F.gelu(F.conv2d(y, *self.of(f"{at}.fast_conv"), padding=3, groups=width))
        y = F.conv2d(y, *self.of(f"{at}.fast_proj"))
        x = x + y.flatten(2).transpose(1, 2)
        g = torch.cat([x, s], dim=2).mean(1)
        g = F.linear(F.gelu(F.linear(g, *self.of(f"{at}.gate.0"))), *self.of(f"{at}.gate.2"))
        return x + s * torch.tanh(g)[:, None]

    def __call__(self, pixels):
        slow = self.slow(pixels)
        x, side = self.patches(pixels)
        x = self.norm(x, "fast.pre_layrnorm", 1e-5)
        quarter = self.s["depth"] // 4
        for index in range(self.s["depth"]):
            x = self.layer(x, index)
            if (index + 1) % quarter == 0 and index + 1 < self.s["depth"]:
                x = self.adapter(x, slow, index // quarter, side)
        s = self.resized(slow, side).flatten(2).transpose(1, 2)
        return F.linear(x, *self.of("merge.fast_proj")) + F.linear(s, *self.of("merge.slow_proj"))


# The slow map is enlarged to the fast grid at 32 and 64 pixels; at 160 positions are resized.
@pytest.mark.parametrize(("size", "tokens"), [(32, 16), (64, 16), (128, 16), (160, 25)])
def test_equals_a_naive_computation(size, tokens):
    tower = make_tower("clip_convnext")
    pixels = torch.randn(2, 3, size, size)
    naive = Naive(tower.state_dict(), TINY["clip_convnext"])
    expected = torch.cat([naive(image[None]) for image in pixels])
    assert expected.shape == (2, tokens, 16)
    torch.testing.assert_close(tower.encode(pixels)["tokens"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slow", [LARGE, pytest.param(XXLARGE, marks=pytest.mark.slow)])
def test_token_counts(slow):
    """Blocks keep the size of the map, so one for each stage is enough."""
    pixels = {384: 24, 768: 24, 1024: 32, 1536: 48}
    with torch.device("meta"):
        tower = CLIPConvNeXt(**slow | {"depth": 4, "slow_depths": [1, 1, 1, 1]})
        for size, side in pixels.items():
            features = tower.features(torch.empty(1, 3, size, size), [(size, size)])
            assert features.grids == ((side, side),)
            assert features.tokens.shape == (side * side, 1024)
    assert tower.grid == (32, 32)


def test_flops_of_the_convnext_paper():
    """34.4 G multiply-adds of ConvNeXt-L at 224 pixels (arXiv 2201.03545, table 1)."""
    with torch.device("meta"):
        model = build_convnext(32, LARGE["slow_depths"], LARGE["slow_dims"], 1e-6)
    assert convnext_flops(model.config, 49) / 2e9 == pytest.approx(34.4, abs=0.05)


def test_initial_weights():
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    settings = TINY["clip_convnext"] | {"width": 32, "slow_dims": [8, 8, 8, 40]}
    tower = DPNForConditionalGeneration(
        DPNConfig(text_config=text, vision_config={"name": "clip_convnext", **settings})
    ).vision

    def assert_uniform(weight, bound):
        assert weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)

    with torch.no_grad():
        for adapter in tower.adapters:
            assert_uniform(adapter.slow_conv.weight, math.sqrt(6 / (40 + 40)))
            assert_uniform(adapter.fast_conv.weight, math.sqrt(6 / (49 + 32 * 49)))
            assert_uniform(adapter.gate[0].weight, 1 / math.sqrt(64))
            zero = [adapter.slow_proj.weight, adapter.fast_proj.weight]
            for name in ("slow_conv", "slow_proj", "fast_conv", "fast_proj"):
                zero.append(getattr(adapter, name).bias)
            assert not any(tensor.any() for tensor in zero)
            fast, slow = torch.randn(2, 16, 32), torch.randn(2, 40, 2, 2)
            assert torch.equal(adapter(fast, slow, (4, 4)), fast)
        assert_uniform(tower.merge.fast_proj.weight, 1 / math.sqrt(32))
        assert_uniform(tower.merge.slow_proj.weight, 1 / math.sqrt(40))


@pytest.mark.parametrize("size", [(96, 96), (100, 100), (64, 128), (0, 0)])
def test_unsupported_image_sizes_are_refused(size):
    tower = make_tower("clip_convnext")
    message = (
        f"{size[0]} x {size[1]} pixels .* to a square of 32, 64, 128, or a larger multiple of 32"
    )
    with pytest.raises(ValueError, match=message):
        tower.features(torch.zeros(1, 3, 128, 128), [size])


def test_errors():
    with pytest.raises(ValueError, match="depth=6 cannot be divided into 4 equal groups"):
        make_tower("clip_convnext", depth=6)
    for wrong in ({"slow_dims": [4, 6, 8]}, {"patch_size": 20}):
        with pytest.raises(ValueError, match="stages do not fit together"):
            make_tower("clip_convnext", **wrong)
