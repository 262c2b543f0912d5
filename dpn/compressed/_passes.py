"""`Compression`: how the text model of a compressed model runs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from dpn.common.errors import SettingError
from dpn.compressed._deepstack import DeepStack
from dpn.compressed._projection import Projection, ReadImages, parts_of
from dpn.compressed._record import Record
from dpn.decoder.backends import BackendName
from dpn.decoder.cache import RaggedCache
from dpn.decoder.loop import append, prefill
from dpn.families import Family, Image, encoded_blocks, place_spans
from dpn.model.inputs import HostBatch, by_sample
from dpn.routers import Router, RoutingContext
from dpn.tokens import Grid, PackedTokens, Positions, Span, Trace, edges

#: Id of padding columns, which no placeholder has.
PADDING = -1


class Compression:
    """What a compressed model does, and a record of its last prefill.

    Attributes:
        original: The model that was compressed.
        family: Its family.
        projection: What reduces the visual tokens before the first layer; None for nothing.
        reader: What reads the vision tower's attention; None for nothing.
        router: The router.
        attention: Attention backend of the prefill.
        numbering: Rotary positions of rows after a reduction, see `PackedTokens`.
        trace: Record of the last prefill; None before the first one.
    """

    def __init__(
        self,
        original: Any,
        family: Family,
        projection: Projection | None,
        router: Router,
        numbering: Positions,
        attention: BackendName,
    ):
        self.original, self.family = original, family
        self.projection, self.router = projection, router
        self.numbering, self.attention = numbering, attention
        self.reader = None if projection is None else projection.reader
        self.trace: Record | None = None
        # Of the forward pass that runs, or the next one:
        self._images: dict[str, list[Image]] = {}
        self._labels: Tensor | None = None
        self._ids: np.ndarray | None = None
        self._encoding = False

    def note_labels(self, model: Any, args: Any, kwargs: Any) -> None:
        """Remember the labels of a forward pass: routers do not read answers."""
        self._labels = bound(type(model).forward, model, *args, **kwargs).get("labels")

    def note_ids(self, model: Any, given: Mapping[str, Any]) -> None:
        """Remember the token ids of a forward pass, which the text model does not get.

        Without `input_ids`, placeholders are the columns that hold their embedding, as in the
        stock models.
        """
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if ids is None and embeds is not None:
            ids = torch.zeros(embeds.shape[:2], dtype=torch.long)
            for placeholder in self.family.placeholders(model.config).values():
                one = torch.tensor([placeholder], device=embeds.device)
                same = (embeds == model.get_input_embeddings()(one)).all(-1)
                ids[same.cpu()] = placeholder
        self._ids = None if ids is None else ids.cpu().numpy()

    def encode(
        self, kind: str, call: Callable[..., Any], model: Any, args: Any, kwargs: Any
    ) -> Any:
        """Let the vision tower encode images or videos, and remember their grids."""
        if self._encoding:  # Qwen3-VL encodes videos by its function for images
            return call(model, *args, **kwargs)
        self._encoding = True
        try:
            with nullcontext() if self.reader is None else self.reader.reading() as read:
                out = call(model, *args, **kwargs)
        finally:
            self._encoding = False
        given = bound(call, model, *args, **kwargs)
        rows = [int(np.prod(part.shape[:-1])) for part in out.pooler_output]
        images = self.family.layout(model, kind, given, rows)
        if read:
            images = ReadImages(images, self.family.parts(model, kind, given, images, read))
        self._images[kind] = images
        return out

    def run(
        self,
        language: Any,
        hidden: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        cache: Any,
        use_cache: bool,
        planes: "DeepStack | None",
    ) -> tuple[Tensor, RaggedCache | None]:
        """Run the layers of the text model over a prompt, or over text that follows a cache.

        Args:
            language: The text model.
            hidden: Embeddings `[B, T, D]` with visual tokens.
            attention_mask: Mask `[B, T]`, with a filled cache that of its columns, too.
            positions: Rotary positions `[B, T]` or `[A, B, T]`; default: counted from 0.
            cache: Cache of earlier calls.
            use_cache: Whether a new cache is filled.
            planes: Features that are added to visual rows after the first layers.

        Returns:
            Hidden states `[B, T, D]` before the final norm, zero in columns of padding and of rows
            that were dropped or merged; the cache.
        """
        ids = self._ids
        if ids is None or ids.shape != hidden.shape[:2]:
            raise SettingError(
                "The text model of a compressed model was called by itself; call the whole model."
            )
        mask = None if attention_mask is None else attention_mask.bool()
        host = HostBatch.from_tensors(torch.from_numpy(ids), mask, self._labels, None)
        if cache is not None:
            check_cache(cache)
        if cache is not None and cache.get_seq_length():
            return self._append(language, hidden, host, positions, cache), cache
        cache = RaggedCache() if use_cache or cache is not None else None
        tokens = self._prefill(language, hidden, host, positions, cache, planes)
        columns = tokens.columns
        samples = torch.arange(len(tokens.lengths)).repeat_interleave(torch.tensor(tokens.lengths))
        out = torch.zeros_like(hidden).index_put(
            (samples.to(columns.device), columns), tokens.hidden
        )
        return out, cache

    def _prefill(
        self,
        language: Any,
        hidden: Tensor,
        host: HostBatch,
        positions: Tensor | None,
        cache: RaggedCache | None,
        planes: "DeepStack | None",
    ) -> PackedTokens:
        ids = np.where(host.mask, host.ids, PADDING)
        placeholders = self.family.placeholders(self.original.config)
        spans = place_spans(ids, placeholders, self._images, self.family.runs_are_images)
        grids = _grids(spans, len(ids))
        trace = Trace(grids, grids)
        context = RoutingContext(
            instruction=host.instruction,
            router_columns=((),) * len(host.mask),
            keys=host.keys(None),
            training=language.training,
            seed=0,
            step=0,
            trace=trace,
        )
        every = torch.from_numpy(np.flatnonzero(host.mask)).to(hidden.device)
        entry = None if positions is None else positions.flatten(-2).index_select(-1, every)
        tokens = PackedTokens(
            hidden.flatten(0, 1).index_select(0, every),
            *edges(host.mask),
            spans,
            self.numbering,
            entry,
        )
        if self.projection is not None:
            blocks = encoded_blocks(spans, ids, placeholders, self._images)
            parts = [parts_of(self._images[kind], i, block) for kind, i, block in blocks]
            text = np.flatnonzero(host.mask & ~np.isin(ids, list(placeholders.values())))
            tokens = self.projection.reduce(tokens, parts, text, ids.shape[1], context)
            trace.grids = _grids(tokens.spans, len(ids))
        tokens = prefill(
            language,
            self.router,
            tokens,
            context,
            self.attention,
            cache,
            language.gradient_checkpointing and language.training,
            None if planes is None else planes.add,
        )
        self.trace = Record(trace, tokens.spans, tokens.columns_of, language.config)
        if cache is not None:
            cache.columns, cache.trace = hidden.shape[1], trace
        return tokens

    def _append(
        self,
        language: Any,
        hidden: Tensor,
        host: HostBatch,
        positions: Tensor | None,
        cache: RaggedCache,
    ) -> Tensor:
        new = host.last(hidden.shape[1])
        placeholders = list(self.family.placeholders(self.original.config).values())
        if (np.isin(new.ids, placeholders) & new.mask).any():
            raise SettingError(
                "An image cannot be appended to a filled cache; start a new cache with the whole"
                " conversation."
            )
        every = torch.from_numpy(np.flatnonzero(new.mask)).to(hidden.device)
        if positions is not None:
            positions = positions.flatten(-2).index_select(-1, every)
        rows = hidden.flatten(0, 1).index_select(0, every)
        given = positions if self.numbering == "keep" else None
        rows = append(language, rows, new.mask.sum(1).tolist(), cache, given)
        cache.columns += hidden.shape[1]
        return torch.zeros_like(hidden).flatten(0, 1).index_copy(0, every, rows).view_as(hidden)


def _grids(spans: Sequence[Span], batch: int) -> tuple[tuple[Grid, ...], ...]:
    return by_sample([span.grid for span in spans], [span.sample for span in spans], batch)


def check_cache(cache: Any) -> None:
    """Raise a SettingError if a cache is neither ragged nor a new dynamic one."""
    if isinstance(cache, RaggedCache):
        return
    plain = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
    if not plain:
        raise SettingError(
            f"A compressed model cannot fill a {type(cache).__name__}, since its layers hold"
            " different numbers of rows; leave out cache_implementation and past_key_values."
        )
    if cache.get_seq_length():
        raise SettingError(
            "past_key_values was filled by another model; give the compressed model the whole"
            " conversation once."
        )


def bound(call: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    found = signature(call).bind(*args, **kwargs).arguments
    return {**found.pop("kwargs", {}), **found}
