"""Which cells of an image still have a row at each decoder layer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dpn.routers.base import Router, RoutingContext, Where
from dpn.spans import Span
from dpn.tokens import PackedTokens

#: Per layer and image, `[h, w]` which row holds each cell that the projector saw, -1 if none does.
Owners = list[list[np.ndarray]]


@torch.inference_mode()
def survivors(model: Any, inputs: Mapping[str, Any]) -> Owners:
    """Run a prompt and note what enters each layer.

    Args:
        model: a `DPNForConditionalGeneration` in eval mode.
        inputs: of its `forward`, without labels; one sample.
    """
    with _watched(model.router) as entered:
        model(**inputs, logits_to_keep=1)
    first = entered[0]
    grids = {span.image: span.source for span in first}
    return [[_owner(spans, image, grid) for image, grid in grids.items()] for spans in entered]


def _owner(spans: tuple[Span, ...], image: int, grid: tuple[int, int]) -> np.ndarray:
    """`[h, w]` of one image; -1 everywhere once it has no rows."""
    for span in spans:
        if span.image == image and span.rows:
            return span.owner.reshape(grid)
    return np.full(grid, -1)


@contextmanager
def _watched(router: Router) -> Iterator[list[tuple[Span, ...]]]:
    """The spans that enter each layer while the block runs."""
    entered: list[tuple[Span, ...]] = []
    own = router.at

    def at(where: Where, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        tokens = own(where, layer, tokens, context)
        if where == "pre":
            entered.append(tokens.spans)
        return tokens

    router.at = at  # type: ignore[method-assign]
    try:
        yield entered
    finally:
        del router.at
