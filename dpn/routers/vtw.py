"""Visual tokens withdrawal, VTW (arXiv 2405.05803): deep layers have no visual rows."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from dpn.routers._divergence import divergences
from dpn.routers._dropping import DroppingRouter
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import PackedTokens, Positions


class VTWRouter(DroppingRouter):
    """Before layer K, drops all visual rows; text rows keep their positions, as released.

    Args:
        k: K, number of layers with visual rows; default: 15 of 32, as released for LLaVA-1.5-7B,
            scaled to the depth. `python tools/search.py run=RUN router=vtw` finds one.
        positions: `keep`, as in `VTW.py` of lzhxmu/VTW, or `renumber`.
        keep: Target share of visual MACs; the K whose share is closest to it is used.
    """

    trainable = False

    def __init__(
        self,
        k: int | None = None,
        positions: Positions = "keep",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        layers = sizes["text"].num_layers
        strength = round(layers * 15 / 32) if k is None else k
        super().__init__("pre", positions, strength, (0, layers), keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """A share of 0 at the only depth."""
        return {round(strength): 0.0}

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Zeros: all rows are dropped."""
        return [torch.zeros(span.rows) for span in tokens.spans]

    @classmethod
    def search(
        cls, model: Any, batches: Sequence[Mapping[str, Any]], eta: float = 0.003, first: int = 5
    ) -> dict[str, int]:
        """Find the first K at which predictions hardly change without visual rows, as in the paper.

        For each K from `first` on, the divergence KL(without || with) of the last column's
        prediction is averaged over all samples. The release uses an eta of 0.003 for LLaVA-1.5-7B
        and 0.0005 for 13B, on 20 samples (`lmms_eval/__main__.py` of lzhxmu/VTW).

        Args:
            model: See `Router.search`.
            batches: See `Router.search`.
            eta: Largest divergence that is accepted.
            first: Smallest K.

        Returns:
            `k`; the number of layers if no K is accepted.
        """
        sizes: RouterSizes = model.router.sizes
        layers = sizes["text"].num_layers
        tried = range(first, layers)
        found = divergences(model, batches, [cls(k, **sizes) for k in tried])
        good = (k for k, value in zip(tried, found, strict=True) if value <= eta)
        return {"k": next(good, layers)}
