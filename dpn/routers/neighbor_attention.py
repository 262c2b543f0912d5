"""Neighbour-aware visual attention of YOPO (arXiv 2410.06169, section 3): visual rows see the rows
around them.
"""

from collections.abc import Sequence
from typing import Unpack

from dpn.routers._planned import PlannedRouter
from dpn.routers.base import RouterSizes
from dpn.tokens import LayerPlan


class NeighborAttentionRouter(PlannedRouter):
    """Among visual rows each sees those at most `radius` grid rows and columns away, later ones
    included, as the released mask has it; text before the image as ever, and text sees all.

    The release knows one image; of several, each row sees its own image's only.

    Args:
        radius: 2, the window of 5 x 5 in `finetune_yopo.sh` (`attncut_w=5`); a comment in the
            release says 3 x 3.
        layers: 0-based; default: all, as released.
        keep: share of visual MACs to come closest to instead, by choosing the radius.
    """

    lossless = False  # visual rows see later ones

    def __init__(
        self,
        radius: int = 2,
        layers: Sequence[int] | None = None,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        bounds = (0.0, float(max(sizes["grid"])))
        super().__init__(layers, radius, bounds, keep, **sizes)

    def plan_of(self, layer: int, strength: float) -> LayerPlan:
        """A window."""
        return LayerPlan(radius=round(strength))
