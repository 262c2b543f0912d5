"""Tiny settings of every tower, with weights large enough to make errors visible."""

import torch

from dpn import vision

#: Settings smaller than the defaults; a tower that is not listed is tested with its defaults.
TINY = {
    "vit": {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2},
    "clip": {
        "image_size": 16,
        "patch_size": 4,
        "width": 16,
        "depth": 3,
        "heads": 2,
        "ffn_size": 24,
    },
    "clip_convnext": {
        "image_size": 64,
        "width": 16,
        "depth": 8,
        "heads": 2,
        "ffn_size": 24,
        "fast_image_size": 16,
        "fast_patch_size": 4,
        "slow_depths": [2, 1, 3, 1],
        "slow_dims": [4, 6, 8, 10],
        "slow_eps": 0.1,  # so large that a norm with another epsilon gives a different result
    },
}
TOWERS = vision.names()


def make_tower(name: str, **settings):
    """Build a tiny tower in which no parameter has its initial value."""
    torch.manual_seed(0)
    tower = vision.build(name, **TINY.get(name, {}) | settings).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tower
