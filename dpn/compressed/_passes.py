"""`Compression`: how the text model of a compressed model runs."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from dpn.common.errors import SettingError
from dpn.compressed._deepstack import DeepStack
from dpn.compressed._inputs import Inputs
from dpn.compressed._projection import Projection, parts_of
from dpn.compressed._record import Record
from dpn.decoder.backends import BackendName
from dpn.decoder.cache import RaggedCache
from dpn.decoder.loop import append, prefill
from dpn.families import Family, encoded_blocks, place_spans
from dpn.model.inputs import HostBatch, by_sample
from dpn.routers import Router, RoutingContext
from dpn.tokens import Grid, PackedTokens, Positions, Span, Trace, edges

#: Id of columns without placeholder.
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
        inputs: Ids, labels and image grids of the forward pass that runs.
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
        self.inputs = Inputs(family, self.reader)

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
            positions: Position ids as the stock model gets them: `[B, T]`, `[3, B, T]` for time,
                height and width, or `[4, B, T]` with those of the text before them; default:
                counted from 0.
            cache: Cache of earlier calls.
            use_cache: Whether a new cache is filled.
            planes: Features that are added to visual rows after the first layers.

        Returns:
            Hidden states `[B, T, D]` before the final norm, zero in columns of padding; a column
            without a row of its own gets that of the row for it, see `PackedTokens.row`; the cache.
        """
        ids = self.inputs.ids
        if ids is None or ids.shape != hidden.shape[:2]:
            raise SettingError(
                "The text model of a compressed model was called by itself; call the whole model."
            )
        check_cache(cache)
        host = self._host(ids, attention_mask)
        seen = 0 if cache is None else cache.get_seq_length()
        if not seen and attention_mask is None:
            check_packing(positions, uncached=cache is None and not use_cache)
        positions = self._positions(positions, hidden, seen)
        if seen:
            return self._append(language, hidden, host, positions, cache), cache
        recomputed = language.gradient_checkpointing and language.training
        wanted = (use_cache or cache is not None) and not recomputed
        filled = RaggedCache() if wanted else None
        tokens = self._prefill(language, hidden, host, positions, filled, planes)
        if filled is not None and cache is not None:  # the caller's own cache is filled, as usual
            cache.__class__, cache.__dict__ = RaggedCache, vars(filled)
            filled = cache
        every = np.flatnonzero(host.mask)
        rows = tokens.rows_of_columns(*np.nonzero(host.mask))
        out = torch.zeros_like(hidden).flatten(0, 1)
        out = out.index_copy(0, torch.from_numpy(every).to(out.device), tokens.hidden[rows])
        return out.view_as(hidden), filled

    def _host(self, ids: np.ndarray, attention_mask: Tensor | None) -> HostBatch:
        """Copy what the routers read to the CPU."""
        mask = None
        if attention_mask is not None:
            mask = attention_mask.cpu() if isinstance(attention_mask, Tensor) else attention_mask
            check_mask(mask)
        prompt, labels = self.inputs.prompt, self.inputs.labels
        end = None if prompt is None else torch.full((len(ids),), prompt)
        return HostBatch.from_tensors(torch.from_numpy(ids), mask, labels, end)

    def _positions(self, given: Tensor | None, hidden: Tensor, seen: int) -> Tensor | None:
        """Return rotary positions `[B, T]` or `[3, B, T]`; None if they are counted anew."""
        if self.numbering == "renumber":
            return None
        if given is None:  # as in the stock model, padding counts
            given = torch.arange(seen, seen + hidden.shape[1], device=hidden.device)[None]
        given = given[-3:] if given.ndim == 3 else given
        # Behind a cache, Qwen models count those of the whole mask.
        given = given[..., -hidden.shape[1] :]
        return given.expand(*given.shape[:-2], *hidden.shape[:2])

    def _prefill(
        self,
        language: Any,
        hidden: Tensor,
        host: HostBatch,
        positions: Tensor | None,
        cache: RaggedCache | None,
        planes: "DeepStack | None",
    ) -> PackedTokens:
        columns_of, left = edges(host.mask)
        asked = host.mask.copy()
        if self.inputs.prompt is not None:
            asked[:, self.inputs.prompt :] = False  # what a model generated is text
        ids, images = np.where(asked, host.ids, PADDING), self.inputs.images
        placeholders = self.family.placeholders(self.original.config)
        begins = self.family.begins if self.family.single_tiles else None
        spans = place_spans(ids, placeholders, images, begins)
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
            columns_of,
            left,
            spans,
            self.numbering,
            entry,
        )
        if self.projection is not None:
            blocks = encoded_blocks(spans, ids, placeholders, images)
            parts = [parts_of(images[kind], i, block) for kind, i, block in blocks]
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
        if host.labels is not None and trace.score_reads:
            warn_of_answers(tokens.spans, host.instruction)
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
        if self.inputs.images:
            raise SettingError(
                "An image cannot be appended to a filled cache; start a new cache with the whole"
                " conversation."
            )
        every = torch.from_numpy(np.flatnonzero(new.mask)).to(hidden.device)
        if positions is not None:
            positions = positions.flatten(-2).index_select(-1, every)
        rows = hidden.flatten(0, 1).index_select(0, every)
        rows = append(language, rows, new.mask.sum(1).tolist(), cache, positions)
        cache.columns += hidden.shape[1]
        return torch.zeros_like(hidden).flatten(0, 1).index_copy(0, every, rows).view_as(hidden)


def _grids(spans: Sequence[Span], batch: int) -> tuple[tuple[Grid, ...], ...]:
    return by_sample([span.grid for span in spans], [span.sample for span in spans], batch)


def check_cache(cache: Any) -> None:
    """Raise a SettingError if a cache is neither ragged nor a new dynamic one."""
    if cache is None or isinstance(cache, RaggedCache):
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


def warn_of_answers(spans: Sequence[Span], instruction: Sequence[tuple[int, int]]) -> None:
    """Warn if a router has read text that comes before the image, because what follows the image is
    supervised.
    """
    if any(instruction[span.sample][1] <= span.column for span in spans):
        warnings.warn(
            "The labels supervise text before an image, and routers do not read supervised text or"
            " what follows it; without a question behind the image, its first rows are kept. Set"
            " the labels of the whole prompt to -100.",
            stacklevel=2,
        )


def check_mask(attention_mask: Any) -> None:
    """Raise a SettingError if an attention mask is not `[B, T]` of zeros and ones."""
    if getattr(attention_mask, "ndim", None) != 2:
        raise SettingError(
            "A compressed model builds the masks of its layers itself; attention_mask must be"
            " [B, T] with 1 for text and images and 0 for padding."
        )
    if not (attention_mask != 0).any(1).all():
        raise SettingError(
            "attention_mask is 0 in all columns of a sample; each sample needs a token, with"
            " prefill_chunk_size in each chunk."
        )
    if not ((attention_mask == 0) | (attention_mask == 1)).all():
        raise SettingError(
            "attention_mask must be 1 for text and images and 0 for padding; several sequences in"
            " one row are not supported."
        )


def check_packing(positions: Tensor | None, uncached: bool) -> None:
    """Raise a SettingError if position ids mean several sequences in one row.

    Args:
        positions: Position ids of a pass without attention mask, see `Compression.run`.
        uncached: Whether nothing is cached, in which case a stock model takes every jump for the
            start of another sequence.
    """
    if positions is None or (positions.ndim == 3 and len(positions) == 3):
        return  # nothing says where the text columns are
    steps = (positions[0] if positions.ndim == 3 else positions).diff(dim=-1)
    if ((steps < 1) | ((steps > 1) & uncached)).any():
        raise SettingError(
            "position_ids do not grow by one from column to column, which stands for several"
            " sequences in one row; a compressed model supports one sequence per row, and"
            " positions with gaps together with an attention_mask."
        )
