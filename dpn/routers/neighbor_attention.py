"""Neighbour-aware visual attention of YOPO (arXiv 2410.06169, section 3): visual rows attend to the
rows around them.
"""

from collections.abc import Sequence
from typing import Unpack

from dpn.common.ranges import AtLeast0
from dpn.routers._planned import PlannedRouter
from dpn.routers.base import RouterSizes
from dpn.tokens import Block, LayerPlan


class NeighborAttentionRouter(PlannedRouter):
    """Each visual row attends to the visual rows at most `radius` grid rows and columns away.

    As in the released mask, these include later rows. Visual rows still attend to the text before
    the image, and text attends to everything before it. The release has one image per sample; with
    several, visual rows attend to their own image only.

    Args:
        radius: Distance in grid rows and columns; 2 is the 5 x 5 window of `finetune_yopo.sh`
            (`attncut_w=5`), while a comment in the release says 3 x 3.
        layers: 0-based indices of the layers that do so; default: all, as released.
        keep: Target share of visual MACs; the radius whose share is closest to it is used.
    """

    lossless = False  # visual rows attend to later ones

    def __init__(
        self,
        radius: AtLeast0 = 2,
        layers: Sequence[int] | None = None,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        blocks = sizes.get("blocks") or [Block(sizes["grid"])]
        bounds = (0.0, float(longest_side(blocks)))
        super().__init__(layers, radius, bounds, keep, **sizes)

    def plan_of(self, layer: int, strength: float) -> LayerPlan:
        return LayerPlan(radius=round(strength))


def longest_side(blocks: Sequence[Block]) -> int:
    """Return the radius at which every visual row attends to its whole grid."""
    return max(max(block.grid) for block in blocks)
