"""Layer drop of YOPO (arXiv 2410.06169, section 3): no visual computation in deep layers."""

from typing import Unpack

from dpn.routers.base import RouterSizes
from dpn.routers.vtw import VTWRouter


class LayerDropRouter(VTWRouter):
    """Before layer K drops every visual row, as `vtw` does; text rows keep their positions.

    The release takes the attention to visual keys away from layer K on. Whether it is shared out
    among the others is left open there; here it is, which is what dropping the rows means.

    Args:
        k: K, default half of the layers, which is `layercut` 20 of the 13B's 40 in
            `finetune_yopo.sh`.
        keep: share of visual MACs to come closest to instead, by choosing K.
    """

    acts = "within layers"
    trainable = True

    def __init__(
        self, k: int | None = None, keep: float | None = None, **sizes: Unpack[RouterSizes]
    ):
        k = sizes["text"].num_layers // 2 if k is None else k
        super().__init__(k, "keep", keep, **sizes)
