"""`Trace`: the record of one forward pass, with the rows of each layer and all decisions."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from dpn.tokens.grids import Grid
from dpn.tokens.layer_plan import LayerPlan, Work, work_of
from dpn.tokens.packed import PackedTokens


@dataclass
class Decision:
    """What a router chose for whole samples at one layer.

    Attributes:
        layer: 0-based decoder layer.
        samples: The S samples that the decision is about.
        grids: Grids of those samples before the decision, one per image.
        experts: Index of the chosen expert among the router's options at this layer, `[S]`.
        probs: Probabilities of the experts, `[S, E]`, with gradient where the router is trained.
        kept: Number of visual rows of those samples after the decision.
        read: Vector that each choice was computed from, `[S, D]`, detached; None for routers that
            read no rows.
        names: Names of the experts, e.g. `2x2`; empty where there is no choice.
    """

    layer: int
    samples: tuple[int, ...]
    grids: tuple[tuple[Grid, ...], ...]
    experts: Tensor
    probs: Tensor
    kept: tuple[int, ...]
    read: Tensor | None = None
    names: tuple[str, ...] = ()


@dataclass
class RowDecision:
    """What a router chose for single visual rows at one layer.

    Attributes:
        layer: 0-based decoder layer.
        logits: Logits of the options, `[Nv, E]`, with gradient where the router is trained.
        chosen: Index of the chosen option, `[Nv]`.
    """

    layer: int
    logits: Tensor
    chosen: Tensor


@dataclass
class Trace:
    """The record of one forward pass, read by losses, metrics, logs and reports.

    Attributes:
        tower_grids: The vision tower's uncompressed grids of each sample, one per image at its
            original size.
        grids: The grids of each sample that entered the decoder, one per image.
        visual_rows: For each layer, the number of visual rows of each sample that enter it, without
            those that skip it.
        decisions: Decisions about whole samples, in the order of the layers.
        sample_loss: Mean language loss of each sample's supervised tokens, `[B]`, detached; nan for
            samples without any, None without labels.
        predicted: Most probable token at each supervised place of each sample; None without labels.
        plans: Plan of each layer.
        work: For each layer, the work for the visual rows of each sample.
        score_reads: For each call of `RoutingContext.attention_scores`, the number of query rows
            and of all rows of each sample.
        question_rows: Number of text rows of each sample that the decoder read for the projector,
            see `Projector.reads_question`.
        probe: Trace of the extra pass that the routing loss requested, see `RoutingLoss.probe`.
        row_decisions: Decisions about single rows, in the order of the layers.
    """

    tower_grids: tuple[tuple[Grid, ...], ...]
    grids: tuple[tuple[Grid, ...], ...]
    visual_rows: list[tuple[int, ...]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    sample_loss: Tensor | None = None
    predicted: tuple[Tensor, ...] | None = None
    plans: list[LayerPlan | None] = field(default_factory=list)
    work: list[tuple[Work, ...]] = field(default_factory=list)
    score_reads: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    question_rows: tuple[int, ...] = ()
    probe: "Trace | None" = None
    row_decisions: list[RowDecision] = field(default_factory=list)
    _entered: tuple[Any, LayerPlan | None] | None = field(default=None, repr=False)

    @property
    def base_rows(self) -> tuple[int, ...]:
        """Number of the vision tower's uncompressed tokens of each sample."""
        return tuple(sum(h * w for h, w in grids) for grids in self.tower_grids)

    def enter(self, tokens: PackedTokens, plan: LayerPlan | None) -> None:
        """Record the rows that enter the next layer, and its plan."""
        self.plans.append(plan)
        if self._entered and self._entered[0] is tokens.spans and self._entered[1] is plan:
            self.visual_rows.append(self.visual_rows[-1])
            self.work.append(self.work[-1])
            return
        self._entered = tokens.spans, plan
        visual = tokens.visual_rows
        images: list[list[Grid]] = [[] for _ in visual]
        before: list[list[int]] = [[] for _ in visual]  # text rows before each image
        for start, span in zip(tokens.starts, tokens.spans, strict=True):
            seen = sum(height * width for height, width in images[span.sample])
            before[span.sample].append(start - tokens.offsets[span.sample] - seen)
            images[span.sample].append(span.grid)
        text = [length - n for length, n in zip(tokens.lengths, visual, strict=True)]
        self.visual_rows.append(visual)
        self.work.append(tuple(map(partial(work_of, plan), images, before, text)))

    def experts_of(self, sample: int) -> dict[int, int]:
        """Return the index of the sample's expert at each layer that decided about the sample."""
        return {
            d.layer: int(d.experts[d.samples.index(sample)])
            for d in self.decisions
            if sample in d.samples
        }

    def route_of(self, sample: int) -> dict[int, str]:
        """Return the name of the sample's expert at each layer where there was a choice."""
        return {
            d.layer: d.names[int(d.experts[d.samples.index(sample)])]
            for d in self.decisions
            if d.names and sample in d.samples
        }
