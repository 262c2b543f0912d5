"""Base class of routers, and the context that their hooks receive."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from dpn.common.errors import SettingError
from dpn.common.seeded import uniform
from dpn.cost import MeetsKeep, TextShape, check_share
from dpn.tokens import Block, Grid, LayerPlan, PackedTokens, Positions, Trace

#: Function of the attention probabilities `[R, h, n]` of h heads; returns `[h, ...]`.
Summary = Callable[[Tensor], Tensor]
Where = Literal["pre", "post"]


class AttentionScores(Protocol):
    """See `RoutingContext.attention_scores`."""

    def __call__(
        self,
        tokens: PackedTokens,
        rows: Sequence[Sequence[int]],
        summary: Summary | None = None,
    ) -> list[Tensor]: ...


def _outside_the_loop(
    tokens: PackedTokens, rows: Sequence[Sequence[int]], summary: Summary | None = None
) -> list[Tensor]:
    raise RuntimeError("Attention scores exist only while the layer loop calls a router.")


@dataclass(frozen=True)
class RoutingContext:
    """Inputs of a router in addition to the rows; none of them depends on answers.

    Attributes:
        instruction: First and end column of each sample's text before its first supervised token.
        router_columns: Columns of each sample's `<ROUTER>` tokens.
        keys: uint64 key of each sample, `[B]`; sampling depends on it, not on the place in the
            batch.
        training: Whether the model is in training mode, where routes are sampled.
        seed: Seed of the run.
        step: Optimizer step.
        trace: Record of this pass, to which decisions are added.
        entered: The pack that entered the first layer, with the embeddings of text.
        attention_scores: Function `attention_scores(tokens, rows)` of the hook's pack and R_b rows
            of each sample. It returns their attention probabilities over the sample's n_b rows,
            fp32 `[R_b, H, n_b]` without gradient: before a layer those of that layer, after it
            those of the layer that ran. With a third argument, a `Summary`, it returns the summary
            of all heads, `[H, ...]`, and holds the probabilities of a few heads at a time. A router
            that needs them at a layer must call it there on every process, whatever the samples
            are, because sharded weights are gathered.
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
        """Draw a number in [0, 1) for each sample, `[S]` on the host.

        The number depends on seed, step, layer and sample, not on the process or the batch.
        """
        keys = self.keys[list(samples)]
        return torch.from_numpy(uniform(keys, self.seed, self.step, layer))


class RouterSizes(TypedDict):
    """Arguments that the model passes to every router's constructor.

    Attributes:
        text: Sizes of the decoder.
        grid: Grid of the visual tokens that enter the decoder for an image of native size.
        blocks: Grids of its tiles, if such an image has several; `grid` is the largest of them.
    """

    text: TextShape
    grid: Grid
    blocks: NotRequired[Sequence[Block]]


class Router(nn.Module):
    """Base class of routers, which reduce visual rows inside the decoder.

    The class itself keeps all rows.

    The annotated arguments of a subclass's constructor are the keys of its YAML file. Its last
    parameter is `**sizes: Unpack[RouterSizes]`, which the model passes in and which the constructor
    passes on to this class.

    Args:
        text: Sizes of the decoder.
        grid: Grid of the visual tokens that enter the decoder for an image of native size.
        blocks: Grids of its tiles, if such an image has several; `grid` is the largest of them.
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
    #: Whether `keep` is met by a price that is found on training data after training, see
    #: `dpn.training.calibration`.
    calibrated: ClassVar[bool] = False
    #: Names of the losses that train its gates; empty: the language loss only. `loss=auto` uses the
    #: first of them, and with a `keep` the first that steers towards it.
    losses: ClassVar[tuple[str, ...]] = ()
    #: Arguments that are accepted, so that sweeps can include the method, and never read.
    ignores: ClassVar[tuple[str, ...]] = ()
    #: File name, in a run's folder, of each setting that `tools/search.py` writes to one.
    files: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: Number of training questions that `search` uses by default.
    search_samples: ClassVar[int] = 20

    def __init__(self, *, text: TextShape, grid: Grid, blocks: Sequence[Block] = ()):
        super().__init__()
        self.text, self.grid = text, grid
        self.blocks = tuple(blocks) or (Block(grid),)

    @property
    def sizes(self) -> RouterSizes:
        """Sizes that the model passed to the constructor, to build another router like this one."""
        return {"text": self.text, "grid": self.grid, "blocks": self.blocks}

    @property
    def entering(self) -> int:
        """Number of rows with which an image of native size enters the decoder."""
        return sum(block.rows for block in self.blocks)

    @classmethod
    def inline_files(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Replace paths of files among the arguments by the contents, as a saved model has them."""
        return dict(arguments)

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        """Change the visual rows; called after every layer, or with `where=pre` before it."""
        return tokens

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        """Hook that the layer loop calls before (`pre`) and after (`post`) every layer."""
        return self.between(layer, tokens, context) if where == self.where else tokens

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        """Return what a layer computes for visual rows; None: everything."""
        return None

    def bound(self, most: bool) -> "Router":
        """Return a router that does a bound of this one's work without reading data, for dry runs.

        Args:
            most: Whether it keeps as many rows as this router can, or as few.
        """
        return self

    def expected_rows(self) -> float:
        """Estimate the rows of an image of native size per layer, before training.

        Without a `keep` these are all rows that enter the decoder.
        """
        if self.keep is None:
            return self.entering
        return min(self.entering, self.keep * (self.text.base_rows or self.entering))

    def with_route(self, route: Sequence[Any]) -> "Router":
        """Return this router with a fixed route, to time it with random weights.

        Args:
            route: For each layer at which the router chooses a kernel, a kernel [h, w], or a list
                of kernels that the samples use in turn.

        Raises:
            ValueError: If the router cannot take that route.
        """
        raise SettingError("The router picks no kernels.")

    @classmethod
    def search(cls, model: Any, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Find settings of this method on data, see `tools/search.py`.

        Further arguments of a method's own `search` are options of that command.

        Args:
            model: A trained `DPNForConditionalGeneration` in evaluation mode; its own router does
                not act.
            batches: Arguments of its `forward`, without labels.

        Returns:
            Value of each setting that was found; empty for methods that search for none.
        """
        return {}

    @classmethod
    def example(cls, text: TextShape) -> dict[str, Any]:
        """Stand-ins for settings that come from `search`, to try the method without data.

        Args:
            text: Sizes of the decoder.
        """
        return {}

    def check(self) -> list[str]:
        """Return an error sentence for each problem of the arguments; empty if there is none."""
        return []

    def reach(self) -> tuple[float, float]:
        """Return the lowest and highest `keep` that is possible, for an image of native size."""
        return 1.0, 1.0


def check_keep(router: Router) -> list[str]:
    """Return an error sentence if `router.keep` is not a share, or out of the router's reach."""
    way_out = "change where and how strongly the router acts (its other settings)"
    return check_share("router.keep", router.keep, router.reach, 5e-3, way_out)
