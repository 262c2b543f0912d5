"""Layer drop of YOPO (arXiv 2410.06169, section 3): no visual rows in deep layers."""

from typing import Unpack

from dpn.cost import Unreachable
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.routers.vtw import VTWRouter
from dpn.tokens import LayerPlan, PackedTokens


class LayerDropRouter(VTWRouter):
    """From layer K on, no row attends to visual rows.

    By default visual rows are dropped before layer K, as `vtw` does, so that they cost nothing
    afterwards and the attention weight that they had goes to the other keys; text rows keep their
    positions. The release (`modeling_llama_prune.py` of ZhangAIPI/YOPO_MLLM_Pruning) computes them
    in all layers and sets their attention weights to zero after the softmax, so that this weight is
    lost. `reference` does the same, and saves no work.

    Args:
        k: K, number of layers with visual rows; default: half of the layers, like `layercut` 20 of
            the 13B's 40 in `finetune_yopo.sh`.
        keep: Target share of visual MACs; the K whose share is closest to it is used.
        reference: Whether visual rows are computed as in the release.
    """

    acts = "within layers"
    trainable = True

    def __init__(
        self,
        k: int | None = None,
        keep: float | None = None,
        reference: bool = False,
        **sizes: Unpack[RouterSizes],
    ):
        self.reference = reference
        k = sizes["text"].num_layers // 2 if k is None else k
        super().__init__(k, "keep", keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """A share of 0 at the only depth; nothing is dropped with `reference`."""
        return {} if self.reference else super().schedule(strength)

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        return LayerPlan(mute=True) if self.reference and layer >= self.strength else None

    def check(self) -> list[str]:
        if self.reference and self.keep is not None:
            return [
                Unreachable(
                    f"router.keep={self.keep} cannot be met with router.reference=true, which"
                    " computes all visual rows; set router.keep=null or router.reference=false."
                )
            ]
        return super().check()
