"""Base class of routers that pool a sample's visual rows at a few layers with one of several
kernels.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from dpn.common.distributed import connect
from dpn.common.errors import SettingError
from dpn.routers._pooling_plan import (
    Grids,
    PoolingPlan,
    as_plan_kernels,
    check_plan,
    count_rows,
    is_nested,
    quarter_layers,
)
from dpn.routers.base import Router, RouterSizes, RoutingContext, check_keep
from dpn.tokens import Decision, PackedTokens, Positions


class GateChoice(NamedTuple):
    """Result of `PoolingRouter.choose`.

    Attributes:
        experts: Chosen experts, `[S]`.
        probs: Probabilities of all experts, `[S, E]`.
        read: Rows that the gate read, see `dpn.tokens.Decision`.
    """

    experts: Tensor
    probs: Tensor
    read: Tensor | None = None


class PoolingRouter(Router):
    """Pools every sample's visual rows at each layer of its plan, with a kernel that the subclass
    chooses in `choose`.

    Args:
        layers: See the subclasses.
        kernels: See the subclasses.
        reduce: See the subclasses.
        where: See the subclasses.
        positions: See the subclasses.
        min_rows: Fewest rows that a kernel may leave of a sample; `reference`: as in DPN's release,
            `reference_rows` in training, no limit in evaluation, and samples below 16 rows are
            never pooled.
        keep: See the subclasses.
    """

    reference_rows: ClassVar[int] = 18

    def __init__(
        self,
        layers: Sequence[int] | None,
        kernels: Sequence[Any],
        reduce: Literal["max", "avg", "conv"],
        where: Literal["pre", "post"],
        positions: Positions,
        min_rows: int | Literal["reference"],
        keep: float | None,
        **sizes: Unpack[RouterSizes],
    ):
        super().__init__(**sizes)
        self.where, self.positions, self.reduce, self.keep = where, positions, reduce, keep
        layers = quarter_layers(self.text.num_layers) if layers is None else tuple(layers)
        self.as_reference = min_rows == "reference"
        least = (self.reference_rows, 16) if isinstance(min_rows, str) else (min_rows, 1)
        self.plan = PoolingPlan(layers, as_plan_kernels(kernels, len(layers)), *least)

    @property
    def tails(self) -> tuple[int, ...]:
        """Newline columns of each grid of an image of native size, see `dpn.tokens.Span.tail`."""
        return tuple(block.tail for block in self.blocks)

    def choose(
        self,
        gate: int,
        tokens: PackedTokens,
        samples: Sequence[int],
        allowed: Tensor,
        context: RoutingContext,
    ) -> GateChoice:
        """Choose an expert for each sample.

        Args:
            gate: Index of the layer in the plan.
            tokens: The pack.
            samples: Indices of the S samples to choose for.
            allowed: Experts that each sample may get, bool `[S, E]` on the host.
            context: Context of the pass.
        """
        raise TypeError(f"{type(self).__name__} does not implement choose")

    def scale(self, probs: Tensor, experts: Tensor) -> Tensor | None:
        """Return a factor `[S]` for the visual rows of each routed sample; None: 1."""
        return None

    def weights(self, gate: int) -> list[Tensor | None] | None:
        """Return the convolution weights of each expert at a gate; None: pool with `reduce`."""
        return None

    def routed(self, gate: int, tokens: PackedTokens, context: RoutingContext) -> tuple[int, ...]:
        """Return the samples that have enough visual rows to be routed."""
        rows = tokens.visual_rows
        return tuple(b for b, n in enumerate(rows) if n > 0 and self.plan.eligible(gate, n))

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        if layer not in self.plan.layers:
            return tokens
        gate = self.plan.layers.index(layer)
        samples = self.routed(gate, tokens, context)
        grids = tuple(tuple(s.grid for s in tokens.spans if s.sample == b) for b in samples)
        tails = [[s.tail for s in tokens.spans if s.sample == b] for b in samples]
        options = [self.plan.options(gate, *each) for each in zip(grids, tails, strict=True)]
        kernels = self.plan.kernels[gate]
        free = self.as_reference and not context.training
        allowed = torch.tensor([[free or g is not None for g in o] for o in options]).bool()
        choice = self.choose(
            gate, tokens, samples, allowed.view(len(samples), len(kernels)), context
        )
        chosen = choice.experts.tolist()  # the one synchronisation
        scale = self.scale(choice.probs, choice.experts)
        pooled = self._pool(gate, tokens, samples, chosen, scale)
        kept = tuple(pooled.visual_rows[b] for b in samples)
        names = tuple(f"{h}x{w}" for h, w in self.plan.kernels[gate])
        context.trace.decisions.append(
            Decision(layer, samples, grids, *choice[:2], kept, choice.read, names)
        )
        return pooled

    def _pool(
        self,
        gate: int,
        tokens: PackedTokens,
        samples: Sequence[int],
        chosen: list[int],
        scale: Tensor | None,
    ) -> PackedTokens:
        weights = self.weights(gate)
        if torch.is_grad_enabled():
            used = [x for x in (*(weights or ()), scale) if x is not None]
            tokens = tokens.with_hidden(connect(tokens.hidden, used))
        if not samples:
            return tokens
        expert_of = dict(zip(samples, chosen, strict=True))
        experts = [expert_of.get(span.sample) for span in tokens.spans]
        kernels = [(1, 1) if e is None else self.plan.kernels[gate][e] for e in experts]
        place = {b: i for i, b in enumerate(samples)}
        if scale is not None:
            one = scale.new_ones(1)  # factor of samples that are not routed
            index = [place.get(span.sample, len(samples)) for span in tokens.spans]
            scale = torch.cat([scale, one])[torch.tensor(index).to(scale.device)]
        return tokens.pool(
            kernels,
            reduce="max" if self.reduce == "conv" else self.reduce,
            weights=weights and [None if e is None else weights[e] for e in experts],
            scale=scale,
        )

    def bound(self, most: bool) -> Router:
        sign = 1 if most else -1

        def pick(gate: int, samples: Sequence[int], allowed: Tensor, choice: GateChoice) -> Tensor:
            if choice.read is None:  # the probabilities do not depend on data
                allowed = allowed & (choice.probs > 0)
            sizes = torch.tensor([sign * float(h * w) for h, w in self.plan.kernels[gate]])
            return sizes.expand(allowed.shape).masked_fill(~allowed, torch.inf).argmin(1)

        return self._picking(pick)

    def with_route(self, route: Sequence[Any]) -> Router:
        # `min_rows` is ignored: the route is given.
        layers = len(self.plan.layers)
        if len(route) != layers:
            raise SettingError(
                f"The route has {len(route)} kernels; the router chooses one at {layers} layers."
            )
        takes = []
        for given, kernels in zip(route, self.plan.kernels, strict=True):
            try:
                in_turn = as_plan_kernels(given if is_nested(given) else [given], 1)[0]
            except (TypeError, IndexError):
                raise SettingError(
                    f"{given} is neither a kernel [h, w] nor a list of kernels."
                ) from None
            if missing := [kernel for kernel in in_turn if kernel not in kernels]:
                raise SettingError(
                    f"The route has kernel {missing[0]}; the router has {list(kernels)} there."
                )
            takes.append([kernels.index(kernel) for kernel in in_turn])

        def pick(gate: int, samples: Sequence[int], allowed: Tensor, choice: GateChoice) -> Tensor:
            return torch.tensor([takes[gate][b % len(takes[gate])] for b in samples])

        return self._picking(pick)

    def _picking(self, pick: Callable[[int, Sequence[int], Tensor, GateChoice], Tensor]) -> Router:
        """Return this router with other experts; its own choice is still computed."""
        router, choose = copy.copy(self), self.choose

        def chosen(
            gate: int, tokens: Any, samples: Any, allowed: Tensor, context: Any
        ) -> GateChoice:
            choice = choose(gate, tokens, samples, allowed, context)
            experts = pick(gate, samples, allowed, choice)
            return choice._replace(experts=experts.to(choice.probs.device))

        router.choose = chosen  # type: ignore[method-assign]
        return router

    def check(self) -> list[str]:
        return check_plan(self.plan, self.text, self.grid) + check_keep(self)

    def reach(self) -> tuple[float, float]:
        # The shares if every sample takes the smallest or the largest option at all layers.
        shares = []
        for pick in (min, max):
            grids: Grids = tuple(block.grid for block in self.blocks)
            rows: list[int] = []
            for layer in range(self.text.num_layers):
                if self.where == "post":
                    rows.append(count_rows(grids))
                if layer in self.plan.layers and self.plan.eligible(
                    gate := self.plan.layers.index(layer), count_rows(grids)
                ):
                    options = self.plan.options(gate, grids, self.tails)
                    allowed = [g for g in options if g is not None]
                    grids = pick(allowed, key=count_rows)
                if self.where == "pre":
                    rows.append(count_rows(grids))
            shares.append(self.text.visual_macs(rows) / self.text.full_macs(self.entering))
        return shares[0], shares[1]
