"""Random features of a vision tower, and helpers to test projectors on them."""

import numpy as np
import torch

from dpn import projectors
from dpn.vision import ImageContext, VisualFeatures

GRIDS = ((4, 5), (3, 3), (4, 5), (1, 2))
C, D, HEADS = 16, 12, 2


def features(layers=3, training=False, step=0, seed=0):
    """Return random features of images of three sizes, with attention far from uniform."""
    torch.manual_seed(seed)
    images, cells = len(GRIDS), sum(h * w for h, w in GRIDS)
    return VisualFeatures(
        tokens=torch.randn(cells, C),
        grids=GRIDS,
        layers=torch.randn(cells, layers, C),
        cls=torch.randn(images, C),
        query=3 * torch.randn(images, C),
        keys=torch.randn(cells + images, C),
        heads=HEADS,
        context=ImageContext(
            tuple(torch.randn(3 + i, D) for i in range(images)),
            np.arange(images, dtype=np.uint64) + np.uint64(5),
            training=training,
            step=step,
        ),
    )


def one_by_one(given):
    """Return (tokens, keys with CLS first, CLS query, CLS, layers) of each image."""
    cells = [h * w for h, w in given.grids]
    return zip(
        given.tokens.split(cells),
        given.keys.split([1 + n for n in cells]),
        given.query,
        given.cls,
        given.layers.split(cells),
        strict=True,
    )


def build(name, **arguments):
    torch.manual_seed(1)
    sizes = {"input_size": C, "output_size": D, "grid": (4, 5)}
    projector = projectors.build(name, **arguments, **sizes).eval()
    projector.heads = HEADS
    return projector


def check(projector, given, expected):
    """Check the tokens of every image before the MLP, and their number."""
    made = projector(given)
    for rows, grid, wanted in zip(made.per_image(), made.grids, expected, strict=True):
        assert grid[0] * grid[1] == len(wanted)
        torch.testing.assert_close(rows, projector.layers(wanted))
    return made


def cells_of_regions(grid, side):
    """Return the cells of each region of a grid."""
    height, width = grid
    return [
        [r * width + c for r in range(top, min(top + side, height)) for c in range(left, end)]
        for top in range(0, height, side)
        for left in range(0, width, side)
        for end in [min(left + side, width)]
    ]
