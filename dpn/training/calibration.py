"""Calibrate a router or projector whose share of visual work depends on the sample.

In training, routes are sampled and the budget loss steers their expectation; evaluation takes the
most probable expert, whose share may differ. Calibration finds the price on rows at which training
data take the share that `router.keep` or `projector.keep` asks for. The price is saved with the
model, as a buffer of the router or projector.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from dpn.common.errors import SettingError
from dpn.cost import visual_macs_ratio
from dpn.model import DPNForConditionalGeneration

log = logging.getLogger(__name__)

#: Upper limit of the price: log-probabilities of a confident gate differ by less than this.
LARGEST_PRICE = 64.0


Part = Literal["projector", "router"]


def needs_calibration(model: DPNForConditionalGeneration, part: Part) -> bool:
    """Whether a part meets its `keep` by a price."""
    module = getattr(model, part)
    return module.calibrated and module.keep is not None


def calibrate(
    model: DPNForConditionalGeneration,
    batches: Sequence[dict[str, Any]],
    part: Part = "router",
    tolerance: float = 0.005,
    steps: int = 24,
) -> float:
    """Set a part's price so that its share comes closest to its `keep`.

    Args:
        model: The model; it is left in evaluation mode.
        batches: Training data as arguments of `forward`, without labels.
        part: `router`, whose share is that of visual MACs, or `projector`, whose share is that of
            the tower's tokens that enter the decoder.
        tolerance: Largest difference to `keep` that ends the search early.
        steps: Steps of the bisection; each is one pass over the batches.

    Returns:
        The share reached on these batches.
    """
    model.eval()
    module, share = getattr(model, part), SHARES[part]
    keep = module.keep
    low, high = -LARGEST_PRICE, LARGEST_PRICE  # the share falls as the price rises
    tried: dict[float, float] = {}
    price = 0.0
    for _ in range(steps):
        module.price.fill_(price)
        tried[price] = share(model, batches)
        if abs(tried[price] - keep) <= tolerance:
            break
        low, high = (price, high) if tried[price] > keep else (low, price)
        price = (low + high) / 2
    best = min(tried, key=lambda p: abs(tried[p] - keep))
    module.price.fill_(best)
    log.info("%s.keep=%s: price %.4g reaches %.3f on training data", part, keep, best, tried[best])
    return tried[best]


@torch.inference_mode()
def measured_share(model: DPNForConditionalGeneration, batches: Iterable[dict[str, Any]]) -> float:
    """Mean share of visual MACs over all samples with an image, in evaluation mode."""
    shares: list[float] = []
    for batch in batches:
        trace = model(**batch, return_logits=False).trace
        ratios = visual_macs_ratio(trace, model.config.text_config)
        shares += [r for r, rows in zip(ratios, trace.base_rows, strict=True) if rows]
    return _mean(shares)


@torch.inference_mode()
def entering_share(model: DPNForConditionalGeneration, batches: Iterable[dict[str, Any]]) -> float:
    """Mean share of the tower's tokens that enter the decoder, over all samples with an image."""
    shares: list[float] = []
    for batch in batches:
        trace = model(**batch, return_logits=False, compress=False).trace
        entered = [sum(h * w for h, w in grids) for grids in trace.grids]
        shares += [n / rows for n, rows in zip(entered, trace.base_rows, strict=True) if rows]
    return _mean(shares)


def _mean(shares: Sequence[float]) -> float:
    if not shares:
        raise SettingError("Nothing can be calibrated on samples without images.")
    return sum(shares) / len(shares)


SHARES = {"router": measured_share, "projector": entering_share}
