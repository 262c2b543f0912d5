"""Which cells of an image have a row at each decoder layer, and what was decided on the way."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dpn.routers.base import Router, RoutingContext, Where
from dpn.tokens import PackedTokens, Span, Trace

#: Per layer and image, `[h, w]` which row holds each cell that the projector saw, -1 if none does.
Owners = list[list[np.ndarray]]


@dataclass(frozen=True)
class Passage:
    """The way of one prompt through the decoder.

    Attributes:
        owners: see `Owners`.
        decided: per layer, how many of the trace's decisions came before it.
        trace: of the pass.
    """

    owners: Owners
    decided: list[int]
    trace: Trace


def survivors(model: Any, inputs: Mapping[str, Any]) -> Owners:
    """What enters each layer, see `watch`."""
    return watch(model, inputs).owners


@torch.inference_mode()
def watch(model: Any, inputs: Mapping[str, Any]) -> Passage:
    """Run a prompt and note what enters each layer.

    Args:
        model: a `DPNForConditionalGeneration` in eval mode.
        inputs: of its `forward`, without labels; one sample.
    """
    with _watched(model.router) as entered:
        trace = model(**inputs, logits_to_keep=1).trace
    grids = {span.image: span.source for span in entered[0][0]}
    owners = [[_owner(spans, image, grid) for image, grid in grids.items()] for spans, _ in entered]
    return Passage(owners, [decided for _, decided in entered], trace)


def _owner(spans: tuple[Span, ...], image: int, grid: tuple[int, int]) -> np.ndarray:
    """`[h, w]` of one image; -1 everywhere once it has no rows."""
    for span in spans:
        if span.image == image and span.rows:
            return span.owner.reshape(grid)
    return np.full(grid, -1)


@contextmanager
def _watched(router: Router) -> Iterator[list[tuple[tuple[Span, ...], int]]]:
    """The spans that enter each layer, and the decisions before it, while the block runs."""
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
