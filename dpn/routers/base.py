"""What a router is, what it may look at, and the record of what it decided."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpn.budget import TextShape
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
    """

    layer: int
    samples: tuple[int, ...]
    grids: tuple[tuple[Grid, ...], ...]
    experts: Tensor
    probs: Tensor
    kept: tuple[int, ...]
    read: Tensor | None = None


@dataclass
class Trace:
    """The record of one forward pass that losses, metrics, logs and reports read.

    Attributes:
        tower_grids: the vision tower's uncompressed grids, per sample one per image of the size it
            came in.
        grids: the grids that entered the decoder, per sample one per image.
        visual_rows: per layer, the visual rows of each sample that enter it.
        decisions: in the order of the layers.
        sample_loss: `[B]` mean language loss of each sample's supervised tokens, detached; nan for
            samples without any, None without labels.
        plans: per layer, what it does for visual rows.
        work: per layer, what it computes for visual rows of each sample.
    """

    tower_grids: tuple[tuple[Grid, ...], ...]
    grids: tuple[tuple[Grid, ...], ...]
    visual_rows: list[tuple[int, ...]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    sample_loss: Tensor | None = None
    plans: "list[LayerPlan | None]" = field(default_factory=list)
    work: "list[tuple[Work, ...]]" = field(default_factory=list)

    @property
    def base_rows(self) -> tuple[int, ...]:
        """The vision tower's uncompressed tokens of each sample."""
        return tuple(sum(h * w for h, w in grids) for grids in self.tower_grids)

    def enter(self, tokens: PackedTokens, plan: "LayerPlan | None") -> None:
        """Write down what enters a layer."""
        grids: list[list[Grid]] = [[] for _ in tokens.visual_rows]
        for span in tokens.spans:
            grids[span.sample].append(span.grid)
        self.visual_rows.append(tokens.visual_rows)
        self.plans.append(plan)
        self.work.append(tuple(work_of(plan, images) for images in grids))

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
        window: visual rows see, among visual rows, so many of their own image right before them.
        probe: instead of the first units, those of the largest mean activation over one in so many
            rows of each image, see `probed_rows`.
    """

    radius: int | None = None
    heads: tuple[int, ...] | None = None
    ffn: int | None = None
    window: int | None = None
    probe: int | None = None

    def joined(self, other: "LayerPlan | None") -> "LayerPlan":
        """What is left where both plans leave something out."""
        if other is None:
            return self
        heads = self.heads
        if other.heads is not None:
            heads = tuple(h for h in other.heads if heads is None or h in heads)
        return LayerPlan(
            _least(self.radius, other.radius),
            heads,
            _least(self.ffn, other.ffn),
            _least(self.window, other.window),
            _least(self.probe, other.probe),
        )


def _least(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return min(known) if known else None


class Work(NamedTuple):
    """What one layer computes for the visual rows of a sample.

    Attributes:
        rows: how many there are.
        pairs: of them whose scores are computed.
        probed: those for which every hidden unit of the FFN is computed, to choose among units.
    """

    rows: int
    pairs: int
    probed: int = 0


#: Rows that look through their window together: scores are computed for whole blocks.
BLOCK = 64


def work_of(plan: LayerPlan | None, grids: Sequence[Grid]) -> Work:
    """The work of a layer for the images of a sample."""
    images = [height * width for height, width in grids]
    rows, probed = sum(images), 0
    if plan is not None and plan.probe is not None and plan.ffn is not None:
        probed = sum(len(probed_rows(n, plan.probe)) for n in images)
    if plan is not None and plan.radius is not None:
        return Work(rows, sum(pairs_within(plan.radius, grid) for grid in grids), probed)
    if plan is not None and plan.window is not None:
        return Work(rows, sum(pairs_in_window(plan.window, n) for n in images), probed)
    return Work(rows, rows * rows, probed)


def pairs_within(radius: int, grid: Grid) -> int:
    """Pairs whose scores are computed where rows of a grid see neighbours: whole lines of it."""
    height, width = grid
    return height * width * min(height, 2 * radius + 1) * width


def pairs_in_window(window: int, rows: int) -> int:
    """Pairs whose scores are computed where each row of an image sees a window before it."""
    blocks = [min(BLOCK, rows - first) for first in range(0, rows, BLOCK)]
    return sum(block * min(rows, window + block) for block in blocks)


def probed_rows(rows: int, probe: int) -> list[int]:
    """One in `probe` rows of an image, at least one, evenly spaced from the first to the last."""
    count = max(1, rows // probe) if rows else 0
    return [i * (rows - 1) // max(count - 1, 1) for i in range(count)]


def layer_macs(text: TextShape, plan: LayerPlan | None, work: Work) -> int:
    """Visual MACs of a layer that follows a plan, see `TextShape.layer_macs`."""
    if plan is None:
        return text.layer_macs(work.rows, work.pairs)
    heads = None if plan.heads is None else len(plan.heads)
    return text.layer_macs(work.rows, work.pairs, heads, plan.ffn, work.probed)


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
        """What stands in for this router where there are no data, only shapes (`dpn.footprint`).

        Args:
            most: whether it leaves as many rows as this router can, or as few.
        """
        return self

    def check(self) -> list[str]:
        """Everything that is wrong with the arguments, one sentence each; empty if all is well."""
        return []

    def reach(self) -> tuple[float, float]:
        """Lowest and highest share of visual MACs that `keep` can ask for at the native grid."""
        return 1.0, 1.0


def check_keep(router: Router) -> list[str]:
    """A sentence if `router.keep` is no share, or none that this router can reach."""
    if router.keep is None:
        return []
    if not 0 < router.keep <= 1:
        return [f"router.keep={router.keep} must be larger than 0 and at most 1."]
    low, high = router.reach()
    if not low - 5e-3 <= router.keep <= high + 5e-3:
        return [
            f"router.keep={router.keep} can not be reached by this router, its range here is"
            f" {low:.2f} to {high:.2f}; take a value in it, or change where and how strongly the"
            " router acts (its other settings)."
        ]
    return []
