"""How much a router changes what a model predicts: the measure behind the choice of layers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpn.routers.base import Router


@torch.inference_mode()
def divergences(
    model: Any, batches: Iterable[Mapping[str, Any]], routers: Sequence[Router]
) -> list[float]:
    """KL(with || without) of the last column's prediction, mean over all samples.

    Args:
        model: a `DPNForConditionalGeneration` in evaluation mode; gets its router back.
        batches: arguments of its `forward`, without labels.
        routers: each is tried alone.

    Returns:
        One divergence per router.
    """
    own = model.router
    sums, count = torch.zeros(len(routers)), 0
    try:
        for batch in batches:
            model.router = Router(**own.sizes)
            whole = _last_column(model, batch)
            count += len(whole)
            for place, router in enumerate(routers):
                model.router = router
                part = _last_column(model, batch)
                sums[place] += (part.exp() * (part - whole)).sum().cpu()
    finally:
        model.router = own
    return (sums / count).tolist()


def _last_column(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Log-probabilities of the last column, `[B, vocabulary]`."""
    return model(**batch, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
