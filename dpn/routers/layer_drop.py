"""Layer drop of YOPO (arXiv 2410.06169, section 3): no visual rows in deep layers."""

from typing import Unpack

from dpn.routers.base import RouterSizes
from dpn.routers.vtw import VTWRouter


class LayerDropRouter(VTWRouter):
    """Before layer K, drops all visual rows, as `vtw` does; text rows keep their positions.

    The release removes the attention to visual keys from layer K on and does not say whether it is
    redistributed to other keys. Here it is, because the rows are dropped.

    Args:
        k: K, number of layers with visual rows; default: half of the layers, like `layercut` 20 of
            the 13B's 40 in `finetune_yopo.sh`.
        keep: Target share of visual MACs; the K whose share is closest to it is used.
    """

    acts = "within layers"
    trainable = True

    def __init__(
        self, k: int | None = None, keep: float | None = None, **sizes: Unpack[RouterSizes]
    ):
        k = sizes["text"].num_layers // 2 if k is None else k
        super().__init__(k, "keep", keep, **sizes)
