"""What a router is, what it may look at, and the record of what it decided."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dpn.budget import TextShape, check_share
from dpn.common.seeded import uniform
from dpn.grids import Grid
from dpn.layer_plan import LayerPlan, Work, layer_macs, work_of
from dpn.tokens import PackedTokens, Positions


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

    def visual_macs(self, sample: int, text: TextShape) -> int:
        """Visual MACs of a sample."""
        layers = zip(self.plans, self.work, strict=True)
        return sum(layer_macs(text, plan, work[sample]) for plan, work in layers)

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
    #: Arguments that it accepts, so that sweeps can include it, and never reads.
    ignores: ClassVar[tuple[str, ...]] = ()

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

    def rehearsed(self, most: bool) -> "Router":
        """What stands in for this router where there are no data, only shapes (`dpn.dry_run`).

        Args:
            most: whether it leaves as many rows as this router can, or as few.
        """
        return self

    def expected_rows(self) -> float:
        """Rows of an image of the native size in a layer, mean over the layers, as far as it is
        known before training: all that enter, or the share of the tower's that `keep` asks for.
        """
        entering = self.grid[0] * self.grid[1]
        if self.keep is None:
            return entering
        return min(entering, self.keep * (self.text.base_rows or entering))

    def forced(self, route: Sequence[Any]) -> "Router":
        """This router with a route that no data change, to be timed with random weights.

        Args:
            route: a kernel [h, w] for each layer at which it picks one, or several that samples
                take in turn.

        Raises:
            ValueError: if it can not take that route.
        """
        raise ValueError("The router picks no kernels.")

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
