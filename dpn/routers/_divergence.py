"""How much routers change the predictions of a model; a search chooses layers by it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpn.routers.base import Router


@torch.inference_mode()
def divergences(
    model: Any, batches: Iterable[Mapping[str, Any]], routers: Sequence[Router]
) -> list[float]:
    """Measure KL(with || without) of the last column's prediction, mean over all samples.

    Args:
        model: A `DPNForConditionalGeneration` in evaluation mode; its own router does not act.
        batches: Arguments of its `forward`, without labels.
        routers: Routers, each compared with no router.

    Returns:
        One divergence per router.
    """
    without = Router(**model.router.sizes)
    sums, count = torch.zeros(len(routers)), 0
    for batch in batches:
        whole = _last_column(model, batch, without)
        count += len(whole)
        for place, router in enumerate(routers):
            part = _last_column(model, batch, router)
            sums[place] += (part.exp() * (part - whole)).sum().cpu()
    return (sums / count).tolist()


def _last_column(model: Any, batch: Mapping[str, Any], router: Router) -> Tensor:
    """Return the log-probabilities of the last column, `[B, vocabulary]`."""
    logits = model(**batch, logits_to_keep=1, router=router).logits
    return logits[:, -1].float().log_softmax(-1)
