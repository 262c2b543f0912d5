"""What a router is, what it may look at, and the record of what it decided."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from dpn.common.seeded import uniform
from dpn.cost import MeetsKeep, TextShape, check_share
from dpn.tokens import Grid, LayerPlan, PackedTokens, Positions, Trace

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


class RouterSizes(TypedDict):
    """What the model gives every router's constructor.

    Attributes:
        text: sizes of the decoder.
        grid: grid of the visual tokens that enter the decoder for an image of native size.
    """

    text: TextShape
    grid: Grid


class Router(nn.Module):
    """Decides what happens to visual rows inside the decoder. This base class does nothing.

    A constructor's annotated arguments are the keys of the method's YAML. It ends with `**sizes:
    Unpack[RouterSizes]`, which the model fills in and the constructor hands to this one.

    Args:
        text: sizes of the decoder.
        grid: grid of the visual tokens that enter the decoder for an image of native size.
    """

    #: Where it acts, for tables: `between layers`, `within layers` or `nowhere`.
    acts: ClassVar[str] = "between layers"
    #: How well `keep` is met: `exactly`, to one row, head, unit or layer; `roughly`, on average,
    #: after calibration or by the nearest of a few settings; `never`, if it is ignored or refused.
    meets_keep: ClassVar[MeetsKeep] = "exactly"
    #: Whether models are trained with it; False for training-free methods.
    trainable: ClassVar[bool] = True
    #: Whether it has weights, so that a model that was trained without it needs more training.
    own_weights: ClassVar[bool] = False
    #: Whether a `keep` of 1 computes exactly what `router=none` computes.
    lossless: ClassVar[bool] = True
    #: Whether it multiplies matrices that `dpn.cost.prefill_flops` leaves out: those of its gates,
    #: or similarities of the rows that it merges.
    uncounted_flops: ClassVar[bool] = False

    where: Where = "post"
    positions: Positions = "renumber"
    keep: float | None = None
    #: Whether `keep` is met by choosing a price on training data after training
    #: (`dpn.training.calibration`).
    calibrated: ClassVar[bool] = False
    #: Names of the losses that train its gates; `loss=auto` takes the first one, with a `keep` the
    #: first one that steers to it. None: the language loss alone.
    losses: ClassVar[tuple[str, ...]] = ()
    #: Arguments that it accepts, so that sweeps can include it, and never reads.
    ignores: ClassVar[tuple[str, ...]] = ()
    #: File name, in a run's folder, of each setting that `tools/search.py` writes to one.
    files: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: Questions of the training data that `search` looks at unless told otherwise.
    search_samples: ClassVar[int] = 20

    def __init__(self, *, text: TextShape, grid: Grid):
        super().__init__()
        self.text, self.grid = text, grid

    @property
    def sizes(self) -> RouterSizes:
        """What the model gave its constructor, to build another router for the same place."""
        return {"text": self.text, "grid": self.grid}

    @classmethod
    def inline_files(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
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

    def bound(self, most: bool) -> "Router":
        """A router that stands in for this one in a dry run, where there are shapes but no data.

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

    def with_route(self, route: Sequence[Any]) -> "Router":
        """This router with a route that no data change, to be timed with random weights.

        Args:
            route: a kernel [h, w] for each layer at which it picks one, or several that samples
                take in turn.

        Raises:
            ValueError: if it can not take that route.
        """
        raise ValueError("The router picks no kernels.")

    @classmethod
    def search(cls, model: Any, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Find settings of this method on data, see `tools/search.py`.

        Further arguments of a method's own `search` are options of that command.

        Args:
            model: a trained `DPNForConditionalGeneration` in evaluation mode; its own router does
                not act.
            batches: arguments of its `forward`, without labels.

        Returns:
            Value of each setting that was found; empty for methods that search for none.
        """
        return {}

    @classmethod
    def example(cls, text: TextShape) -> dict[str, Any]:
        """Stand-ins for settings that come from `search`, to try the method without data.

        Args:
            text: sizes of the decoder.
        """
        return {}

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
