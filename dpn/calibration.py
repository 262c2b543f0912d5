"""Meets `router.keep` in evaluation: finds the price on rows at which a trained router spends that
share.

In training routes are sampled and the budget loss steers their expectation; evaluation takes the
most probable expert, whose share may be quite another. The price is saved with the model, as a
buffer of the router.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dpn.cost import visual_macs_ratio
from dpn.model import DPNForConditionalGeneration

log = logging.getLogger(__name__)

#: Log-probabilities of a gate that is sure of itself differ by less than this.
LARGEST_PRICE = 64.0


@torch.inference_mode()
def measured_share(model: DPNForConditionalGeneration, batches: Iterable[dict[str, Any]]) -> float:
    """Mean share of visual MACs over all samples with an image, in evaluation mode."""
    shares: list[float] = []
    for batch in batches:
        trace = model(**batch, return_logits=False).trace
        ratios = visual_macs_ratio(trace, model.config.text_config)
        shares += [r for r, rows in zip(ratios, trace.base_rows, strict=True) if rows]
    if not shares:
        raise ValueError("A router can not be calibrated on samples without images.")
    return sum(shares) / len(shares)


def calibrate(
    model: DPNForConditionalGeneration,
    batches: Sequence[dict[str, Any]],
    tolerance: float = 0.005,
    steps: int = 24,
) -> float:
    """Set the router's price so that the share of visual MACs comes closest to `router.keep`.

    Args:
        model: with a router that is `calibrated`; left in evaluation mode.
        batches: training data as arguments of `forward`, without labels.
        tolerance: stop as soon as the share is this close.
        steps: of the bisection; each is one pass over the batches.

    Returns:
        The share that was reached on these batches.
    """
    model.eval()
    router, keep = model.router, model.router.keep
    low, high = -LARGEST_PRICE, LARGEST_PRICE  # the share falls as the price rises
    tried: dict[float, float] = {}
    price = 0.0
    for _ in range(steps):
        router.price.fill_(price)
        tried[price] = measured_share(model, batches)
        if abs(tried[price] - keep) <= tolerance:
            break
        low, high = (price, high) if tried[price] > keep else (low, price)
        price = (low + high) / 2
    best = min(tried, key=lambda p: abs(tried[p] - keep))
    router.price.fill_(best)
    log.info("router.keep=%s: price %.4g reaches %.3f on training data", keep, best, tried[best])
    return tried[best]
