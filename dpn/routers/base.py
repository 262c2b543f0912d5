"""What a router is, what it may look at, and the record of what it decided."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dpn.budget import TextShape, check_share
from dpn.keyed import uniform
from dpn.tokens import Grid, PackedTokens, Positions


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
        pairs: per layer, pairs of visual rows of each sample whose scores are computed.
        text_pairs: the same of a visual row that looks at a row of text.
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
    plans: "list[LayerPlan | None]" = field(default_factory=list)
    pairs: list[tuple[int, ...]] = field(default_factory=list)
    text_pairs: list[tuple[int, ...]] = field(default_factory=list)
    asked: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    probe: "Trace | None" = None
    row_decisions: list[RowDecision] = field(default_factory=list)

    @property
    def base_rows(self) -> tuple[int, ...]:
        """The vision tower's uncompressed tokens of each sample."""
        return tuple(sum(h * w for h, w in grids) for grids in self.tower_grids)

    def enter(self, tokens: PackedTokens, plan: "LayerPlan | None") -> None:
        """Write down what enters a layer."""
        radius = None if plan is None else plan.radius
        visual = tokens.visual_rows
        pairs = [n * n for n in visual]
        text_pairs = [n * (rows - n) for n, rows in zip(visual, tokens.lengths, strict=True)]
        if radius is not None:  # of the text, only what stands before an image
            pairs, text_pairs, seen = [0] * len(visual), [0] * len(visual), [0] * len(visual)
            for start, span in zip(tokens.starts, tokens.spans, strict=True):
                b = span.sample
                pairs[b] += pairs_within(radius, span.grid)
                text_pairs[b] += span.rows * (start - tokens.offsets[b] - seen[b])
                seen[b] += span.rows
        self.visual_rows.append(visual)
        self.plans.append(plan)
        self.pairs.append(tuple(pairs))
        self.text_pairs.append(tuple(text_pairs))

    def visual_macs(self, sample: int, text: TextShape) -> int:
        """Visual MACs of a sample."""
        macs = 0
        for rows, plan, pairs in zip(self.visual_rows, self.plans, self.pairs, strict=True):
            macs += layer_macs(text, plan, rows[sample], pairs[sample])
        return macs

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


#: See `RoutingContext.attention_scores`.
AttentionScores = Callable[[PackedTokens, Sequence[Sequence[int]]], list[Tensor]]
Where = Literal["pre", "post"]


def _outside_the_loop(tokens: PackedTokens, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    raise RuntimeError("Attention scores exist only while the layer loop calls a router.")


@dataclass(frozen=True)
class RoutingContext:
    """What a router may look at besides the rows; none of it depends on answers.

    Attributes:
        instruction: per sample, first and end column of the text before the first supervised token.
        router_columns: per sample, the columns of its `<ROUTER>` tokens.
        keys: `[B]` uint64 that names each sample; sampling depends on it, not on the place in the
            batch.
        training: whether routes are explored.
        seed: of the run.
        step: optimizer step.
        trace: the record to add to.
        entered: the pack that entered the first layer, embeddings of text among it.
        attention_scores: called as `attention_scores(tokens, rows)` with the pack that the hook got
            and, per sample, R_b rows of it: their attention probabilities over the sample's n_b
            rows, fp32 `[R_b, H, n_b]` without gradient. Before a layer they are those of the layer
            about to run, after it those of the layer that ran. At a layer where a router needs
            them, it asks on every process, whatever the samples are: sharded weights are gathered.
    """

    instruction: tuple[tuple[int, int], ...]
    router_columns: tuple[tuple[int, ...], ...]
    keys: np.ndarray
    training: bool
    seed: int
    step: int
    trace: Trace
    entered: PackedTokens | None = None
    attention_scores: AttentionScores = _outside_the_loop

    def uniform(self, layer: int, samples: Sequence[int]) -> Tensor:
        """A number in [0, 1) for each sample, `[S]` on the host; the same in every process and
        batch.
        """
        keys = self.keys[list(samples)]
        return torch.from_numpy(uniform(keys, self.seed, self.step, layer))


@dataclass(frozen=True)
class LayerPlan:
    """What one layer does for visual rows; None: all that it does for text rows.

    Attributes:
        radius: visual rows see, among visual rows, those of their own image at most so many grid
            rows and columns away, later ones included.
        heads: key/value heads in which visual rows see and show their values; elsewhere their
            attention is lost to others, not shared out among them.
        ffn: how many hidden units of the FFN, the first ones.
        rows: of each span, ascending places of the rows that take part; the others pass the layer
            by as they are, and no row sees them there, nor later in its cache.
        scale: fp32 factor of the FFN's output, of each visual row that takes part.
    """

    radius: int | None = None
    heads: tuple[int, ...] | None = None
    ffn: int | None = None
    rows: tuple[np.ndarray, ...] | None = None
    scale: Tensor | None = None

    def joined(self, other: "LayerPlan | None") -> "LayerPlan":
        """What is left where both plans leave something out.

        Raises:
            ValueError: if both let rows pass by.
        """
        if other is None:
            return self
        heads = self.heads
        if other.heads is not None:
            heads = tuple(h for h in other.heads if heads is None or h in heads)
        if self.rows is not None and other.rows is not None:
            raise ValueError(
                "Two routers of a chain let visual rows pass by the same layer; let them act at"
                " different layers."
            )
        routed = self if other.rows is None else other
        return LayerPlan(
            _least(self.radius, other.radius),
            heads,
            _least(self.ffn, other.ffn),
            routed.rows,
            routed.scale,
        )


def _least(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return min(known) if known else None


def pairs_within(radius: int, grid: Grid) -> int:
    """Pairs whose scores are computed where rows of a grid see neighbours: whole lines of it."""
    height, width = grid
    return height * width * min(height, 2 * radius + 1) * width


def layer_macs(text: TextShape, plan: LayerPlan | None, rows: int, pairs: int) -> int:
    """Visual MACs of a layer that follows a plan, see `TextShape.layer_macs`."""
    if plan is None:
        return text.layer_macs(rows, pairs)
    return text.layer_macs(rows, pairs, None if plan.heads is None else len(plan.heads), plan.ffn)


class Router(nn.Module):
    """Decides what happens to visual rows inside the decoder. This base class does nothing.

    A constructor's annotated arguments are the keys of the method's YAML; `text` and `grid` are
    given by the model.

    Args:
        text: sizes of the decoder.
        grid: of the vision tower's tokens for an image of its native size, after the projector.
    """

    where: Where = "post"
    positions: Positions = "renumber"
    keep: float | None = None
    #: Whether `keep` is met by choosing a price on training data after training
    #: (`dpn.calibration`).
    calibrated: ClassVar[bool] = False
    #: Names of the losses that train its gates; `loss=auto` takes the first one, with a `keep` the
    #: first one that steers to it. None: the language loss alone.
    losses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, text: TextShape, grid: Grid):
        super().__init__()
        self.text, self.grid = text, grid

    @classmethod
    def settled(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as a saved model holds them: what a file says in the place of its path."""
        return dict(arguments)

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        """Change which visual rows go on; called after (`where=pre`: before) every layer."""
        return tokens

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        """What the layer loop calls, before and after every layer."""
        return self.between(layer, tokens, context) if where == self.where else tokens

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        """What a layer does for visual rows; None: all of it."""
        return None

    def check(self) -> list[str]:
        """Everything that is wrong with the arguments, one sentence each; empty if all is well."""
        return []

    def reach(self) -> tuple[float, float]:
        """Lowest and highest share of visual MACs that `keep` can ask for at the native grid."""
        return 1.0, 1.0


def check_keep(router: Router) -> list[str]:
    """A sentence if `router.keep` is no share, or none that this router can reach."""
    way_out = "change where and how strongly the router acts (its other settings)"
    return check_share("router.keep", router.keep, router.reach, 5e-3, way_out)
