"""Record which image cells have a row at each decoder layer, and the router's decisions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dpn.routers.base import Router, RoutingContext, Where
from dpn.tokens import PackedTokens, Span, Trace

#: For each layer and image, `[h, w]`: index of the row that holds each cell of the projector's
#: input, -1 if none does.
Owners = list[list[np.ndarray]]


@dataclass(frozen=True)
class Passage:
    """Record of one prompt's forward pass through the decoder.

    Attributes:
        owners: Row of each image cell, by layer and image, see `Owners`.
        decided: Number of decisions in the trace before each layer.
        trace: Trace of the pass.
    """

    owners: Owners
    decided: list[int]
    trace: Trace


def survivors(model: Any, inputs: Mapping[str, Any]) -> Owners:
    """Run a prompt and return the row of each image cell at the input of each layer."""
    return watch(model, inputs).owners


@torch.inference_mode()
def watch(model: Any, inputs: Mapping[str, Any]) -> Passage:
    """Run a prompt and record the input of each layer.

    Args:
        model: A `DPNForConditionalGeneration` in eval mode.
        inputs: Inputs for its `forward`, without labels; one sample.
    """
    with _watched(model.router) as entered:
        trace = model(**inputs, logits_to_keep=1).trace
    grids = {span.image: span.source for span in entered[0][0]}
    owners = [[_owner(spans, image, grid) for image, grid in grids.items()] for spans, _ in entered]
    return Passage(owners, [decided for _, decided in entered], trace)


def _owner(spans: tuple[Span, ...], image: int, grid: tuple[int, int]) -> np.ndarray:
    """Return the row of each cell of an image, `[h, w]`; -1 everywhere once it has no rows."""
    for span in spans:
        if span.image == image and span.rows:
            return span.owner.reshape(grid)
    return np.full(grid, -1)


@contextmanager
def _watched(router: Router) -> Iterator[list[tuple[tuple[Span, ...], int]]]:
    """Record the spans that enter each layer and the number of decisions before it."""
    entered: list[tuple[tuple[Span, ...], int]] = []
    own = router.at

    def at(where: Where, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        tokens = own(where, layer, tokens, context)
        if where == "pre":
            entered.append((tokens.spans, len(context.trace.decisions)))
        return tokens

    router.at = at  # type: ignore[method-assign]
    try:
        yield entered
    finally:
        del router.at
