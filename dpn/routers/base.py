"""What a router is, what it may look at, and the record of what it decided."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

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
    """

    tower_grids: tuple[tuple[Grid, ...], ...]
    grids: tuple[tuple[Grid, ...], ...]
    visual_rows: list[tuple[int, ...]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    sample_loss: Tensor | None = None

    @property
    def base_rows(self) -> tuple[int, ...]:
        """The vision tower's uncompressed tokens of each sample."""
        return tuple(sum(h * w for h, w in grids) for grids in self.tower_grids)

    def experts_of(self, sample: int) -> dict[int, int]:
        """The expert chosen for a sample at each layer where one was."""
        return {
            d.layer: int(d.experts[d.samples.index(sample)])
            for d in self.decisions
            if sample in d.samples
        }


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
    """

    instruction: tuple[tuple[int, int], ...]
    router_columns: tuple[tuple[int, ...], ...]
    keys: np.ndarray
    training: bool
    seed: int
    step: int
    trace: Trace

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

    where: Literal["pre", "post"] = "post"
    positions: Positions = "renumber"
    keep: float | None = None
    #: Whether `keep` is met by choosing a price on training data after training
    #: (`dpn.calibration`).
    calibrated: ClassVar[bool] = False

    def __init__(self, *, text: TextShape, grid: Grid):
        super().__init__()
        self.text, self.grid = text, grid

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        """Change which visual rows go on; called after (`where=pre`: before) every layer."""
        return tokens

    def check(self) -> list[str]:
        """Everything that is wrong with the arguments, one sentence each; empty if all is well."""
        return []

    def reach(self) -> tuple[float, float]:
        """Lowest and highest share of visual MACs that `keep` can ask for at the native grid."""
        return 1.0, 1.0
