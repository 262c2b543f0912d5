"""The record of a forward pass: rows in each layer and every routing decision."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from dpn.tokens.grids import Grid
from dpn.tokens.layer_plan import LayerPlan, Work, work_of
from dpn.tokens.packed import PackedTokens


@dataclass
class Decision:
    """What a router did at one layer.

    Attributes:
        layer: 0-based decoder layer.
        samples: the S samples that it decided about.
        grids: their visual grids before the decision, one per image.
        experts: `[S]` what was chosen, an index into the router's options at this layer.
        probs: `[S, E]` probabilities, with gradient where the router is trained.
        kept: visual rows of those samples afterwards.
        read: `[S, D]` what each choice was made from, detached; None for routers that read nothing.
        names: of the experts, e.g. `2x2`; empty where there is nothing to choose.
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
    """What a router decided about single visual rows at one layer.

    Attributes:
        layer: 0-based decoder layer.
        logits: `[Nv, E]` of each option, with gradient where the router is trained.
        chosen: `[Nv]` an index into the options.
    """

    layer: int
    logits: Tensor
    chosen: Tensor


@dataclass
class Trace:
    """The record of one forward pass that losses, metrics, logs and reports read.

    Attributes:
        tower_grids: the vision tower's uncompressed grids, per sample one per image of the size it
            came in.
        grids: the grids that entered the decoder, per sample one per image.
        visual_rows: per layer, the visual rows of each sample that enter it, without those that
            pass it by.
        decisions: in the order of the layers.
        sample_loss: `[B]` mean language loss of each sample's supervised tokens, detached; nan for
            samples without any, None without labels.
        predicted: of each sample, the most probable token at each supervised place; None without
            labels.
        plans: per layer, what it does for visual rows.
        work: per layer, what it computes for visual rows of each sample.
        asked: for each time that attention was looked at, the queries of each sample and its rows,
            see `RoutingContext.attention_scores`.
        probe: of the pass that the routing loss asked for besides, see `RoutingLoss.probe`.
        row_decisions: of routers that decide about single rows, in the order of the layers.
    """

    tower_grids: tuple[tuple[Grid, ...], ...]
    grids: tuple[tuple[Grid, ...], ...]
    visual_rows: list[tuple[int, ...]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    sample_loss: Tensor | None = None
    predicted: tuple[Tensor, ...] | None = None
    plans: list[LayerPlan | None] = field(default_factory=list)
    work: list[tuple[Work, ...]] = field(default_factory=list)
    asked: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    probe: "Trace | None" = None
    row_decisions: list[RowDecision] = field(default_factory=list)
    _entered: tuple[Any, LayerPlan | None] | None = field(default=None, repr=False)

    @property
    def base_rows(self) -> tuple[int, ...]:
        """The vision tower's uncompressed tokens of each sample."""
        return tuple(sum(h * w for h, w in grids) for grids in self.tower_grids)

    def enter(self, tokens: PackedTokens, plan: LayerPlan | None) -> None:
        """Write down what enters a layer."""
        self.plans.append(plan)
        if self._entered and self._entered[0] is tokens.spans and self._entered[1] is plan:
            self.visual_rows.append(self.visual_rows[-1])
            self.work.append(self.work[-1])
            return
        self._entered = tokens.spans, plan
        visual = tokens.visual_rows
        images: list[list[Grid]] = [[] for _ in visual]
        before: list[list[int]] = [[] for _ in visual]  # rows of text that stand before each image
        for start, span in zip(tokens.starts, tokens.spans, strict=True):
            seen = sum(height * width for height, width in images[span.sample])
            before[span.sample].append(start - tokens.offsets[span.sample] - seen)
            images[span.sample].append(span.grid)
        text = [length - n for length, n in zip(tokens.lengths, visual, strict=True)]
        self.visual_rows.append(visual)
        self.work.append(tuple(map(partial(work_of, plan), images, before, text)))

    def experts_of(self, sample: int) -> dict[int, int]:
        """The expert chosen for a sample at each layer where one was."""
        return {
            d.layer: int(d.experts[d.samples.index(sample)])
            for d in self.decisions
            if sample in d.samples
        }

    def route_of(self, sample: int) -> dict[int, str]:
        """The name of what was chosen for a sample at each layer where there was a choice."""
        return {
            d.layer: d.names[int(d.experts[d.samples.index(sample)])]
            for d in self.decisions
            if d.names and sample in d.samples
        }
