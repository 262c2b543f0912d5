"""Hold a compressed model against the stock model that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch._subclasses import FakeTensorMode
from transformers import AutoModelForImageTextToText

from dpn.common.errors import DPNError
from dpn.compressed import compress
from dpn.families import family_of
from dpn.measure.agreement import Agreement, Selection, agreement, outputs, selection
from dpn.measure.hidden_columns import Visible, Watched, hidden, last_attention, watched
from dpn.metrics.speed import Ratio, compare
from dpn.routers.fastv import FastVRouter

#: Largest difference that rounding explains: of logits as a share of the largest logit, of
#: attention as a share of the attention at which the choice was made. For random models of 28
#: layers and width 256, logits differ by 1.4e-6, 2.8e-3 and 2.1e-2 at most, and FastV itself moves
#: them by 0.2 to 0.3.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
#: Longest prompt whose attention matrix is made to restate FastV's choice.
MOST_COLUMNS = 4096


class Disagreement(DPNError):
    """A compressed model computes something else than the stock model."""


@dataclass(frozen=True)
class Verification:
    """Comparison of a compressed model with the stock model.

    Attributes:
        none: `router=none` against the stock model.
        method: The method against the stock model with hidden columns; None if it has no such
            reference, see `reason`.
        reason: Why the method was not compared, a clause; empty if it was.
        selection: FastV's choice against the stock model's attention; None for other methods, and
            for prompts of more than `MOST_COLUMNS` columns.
        title: The method in words, e.g. `fastv keep=0.5`.
        rows: Number of visual rows that enter each layer with the method.
        share: Visual MACs of the method as a share of the stock model's.
        flops: Prefill FLOPs of the text model as a share of the stock model's.
        time: Time of a prefill against the stock model's, vision tower included; None if it was not
            measured.
    """

    none: Agreement
    method: Agreement | None
    reason: str
    selection: Selection | None
    title: str
    rows: tuple[int, ...]
    share: float
    flops: float
    time: Ratio | None

    @property
    def holds(self) -> bool:
        """Whether everything that was compared agrees."""
        return all(part.holds for part in (self.none, self.method, self.selection) if part)


def check_method(config: Any, router: Mapping[str, Any], keep: float | None) -> None:
    """Check that a method can be used on a model, before any weight is loaded.

    Args:
        config: Config of a Hugging Face VLM.
        router: Name and settings of the method.
        keep: Target share of visual MACs.

    Raises:
        SettingError: If it cannot.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with FakeTensorMode(allow_non_fake_inputs=True):  # weights without memory, but not missing
        model.to_empty(device="cpu")
    compress(model, router, keep=keep)


@torch.inference_mode()
def verify_model(
    stock: Any,
    inputs: Mapping[str, Any],
    router: Mapping[str, Any],
    keep: float | None = None,
    new_tokens: int = 12,
    pairs: int = 5,
) -> Verification:
    """Compare `dpn.compress` with a stock model on one sample.

    Args:
        stock: Hugging Face VLM in eval mode; it stays as it is.
        inputs: Inputs of one sample with an image.
        router: Name and settings of the method.
        keep: Target share of visual MACs; None: the method's settings decide.
        new_tokens: Number of tokens to generate.
        pairs: Number of timed rounds; 0: none.

    Raises:
        SettingError: If the model or the method is not supported.
    """
    inputs = dict(inputs)
    plain, fast = compress(stock), compress(stock, router, keep=keep)
    tolerance = TOLERANCE[str(stock.dtype).removeprefix("torch.")]
    layers = getattr(stock.model, family_of(stock.config).text).layers
    theirs = outputs(stock, inputs, new_tokens)
    every = np.ones(inputs["input_ids"].shape, dtype=bool)
    none = agreement(
        outputs(plain, inputs, new_tokens), theirs, every, tolerance, "router=none", "stock model"
    )
    with watched(fast.dpn) as watcher:
        ours = outputs(fast, inputs, new_tokens)
    record, whole = fast.dpn.trace, plain.dpn.trace
    visible = watcher.visible(every.shape)
    reason = _no_reference(router["name"], fast, watcher)
    method = chosen = None
    if not reason:
        with hidden(layers, visible):
            reference = outputs(stock, inputs, new_tokens)
        words = "stock model with the same columns hidden"
        last = visible[max(visible)] if visible else every
        method = agreement(ours, reference, last, tolerance, title(router, keep), words)
        effect = (reference.prompt[:, -1].float() - theirs.prompt[:, -1].float()).abs().max()
        method = replace(method, effect=float(effect))
        chosen = _selection(stock, layers, inputs, fast, visible, tolerance)
    del theirs, ours
    time = None
    if pairs:
        prefill = partial(_prefill, inputs=inputs)
        time = compare(partial(prefill, fast), partial(prefill, stock), pairs, warmup=1)
    return Verification(
        none,
        method,
        reason,
        chosen,
        title(router, keep),
        tuple(rows for (rows,) in record.visual_rows),
        record.share[0],
        record.prefill_flops[0] / whole.prefill_flops[0],
        time,
    )


def title(router: Mapping[str, Any], keep: float | None) -> str:
    """Name a method with its settings, e.g. `fastv keep=0.5`."""
    words = [f"{key}={value}" for key, value in router.items() if key != "name"]
    return " ".join([router["name"], *words, *([] if keep is None else [f"keep={keep}"])])


def _prefill(model: Any, inputs: Mapping[str, Any]) -> None:
    model(**inputs, use_cache=True, logits_to_keep=1)


def _no_reference(name: str, fast: Any, watcher: Watched) -> str:
    """Return why hidden columns cannot express a method; empty if they can."""
    if fast.dpn.numbering != "keep":
        return "renumbered rows have other positions than the stock model's columns"
    if watcher.planned:
        return f"{name} changes what layers compute for visual rows"
    if watcher.changed:
        return f"{name} merges, pools or reorders rows"
    return ""


def _selection(
    stock: Any,
    layers: Any,
    inputs: Mapping[str, Any],
    fast: Any,
    visible: Visible,
    tolerance: float,
) -> Selection | None:
    """Restate FastV's choice; None for other methods, and for very long prompts."""
    ids = inputs["input_ids"]
    router = fast.dpn.router
    if not isinstance(router, FastVRouter) or router.k not in visible:
        return None
    if ids.shape[1] > MOST_COLUMNS:
        return None
    marks = family_of(stock.config).placeholders(stock.config).values()
    visual = np.isin(ids.cpu().numpy(), list(marks))[0]
    attention = last_attention(stock, layers, inputs, router.k - 1)[0]
    return selection(attention, visible[router.k][0], visual, tolerance)
