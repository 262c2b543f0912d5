"""What `static`, `random` and `dpe` share: at a few layers, one kernel out of several pools a
sample's visual rows.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dpn.budget import TextShape
from dpn.distributed import connect
from dpn.grids import Grid, Kernel, kernel_on, pooled_grid
from dpn.routers.base import Decision, Router, RoutingContext, check_keep
from dpn.tokens import PackedTokens, Positions

Grids = tuple[Grid, ...]
PAPER_KERNELS: tuple[Kernel, ...] = ((1, 1), (1, 2), (2, 2))


def quarter_layers(num_layers: int) -> tuple[int, ...]:
    """The layers that end the first, second and third quarter of a decoder: 7, 15, 23 of 32."""
    return tuple(num_layers * k // 4 - 1 for k in (1, 2, 3))


def count_rows(grids: Grids) -> int:
    """Rows of all grids together."""
    return sum(h * w for h, w in grids)


@dataclass(frozen=True)
class PoolingPlan:
    """Which kernels may be used where; every choice and every expected cost follows from it.

    Attributes:
        layers: where a kernel is chosen, ascending.
        kernels: the experts of each of these layers.
        min_rows: a kernel that would leave a sample fewer rows is not allowed.
        min_pooled: a sample with fewer rows is not routed.
    """

    layers: tuple[int, ...]
    kernels: tuple[tuple[Kernel, ...], ...]
    min_rows: int = 1
    min_pooled: int = 1

    def eligible(self, gate: int, rows: int) -> bool:
        """Whether a sample with so many visual rows is routed at a gate."""
        largest = max(h * w for h, w in self.kernels[gate])
        return rows >= max(largest, self.min_pooled)

    def options(self, gate: int, grids: Grids) -> tuple[Grids | None, ...]:
        """What each expert of a gate would leave of a sample; None where it is not allowed.

        At least one is allowed: the one that leaves most rows, which is the identity if there is
            one.
        """
        after = [
            tuple(pooled_grid(grid, kernel_on(grid, kernel)) for grid in grids)
            for kernel in self.kernels[gate]
        ]
        largest = max(map(count_rows, after))
        return tuple(g if count_rows(g) >= min(self.min_rows, largest) else None for g in after)

    def expected_macs(self, probs: Sequence[Any], grids: Grids, text: TextShape, where: str) -> Any:
        """Visual MACs of one sample, expected over independent choices at all gates.

        Args:
            probs: per gate, the probability of each expert, `[E]` or `[E, S]` for S samples of
                these grids; an expert that is not allowed gives its share to the others, as in
                sampling.
            grids: what enters the decoder.
            text: sizes of the decoder.
            where: whether a gate acts before (`pre`) or after (`post`) its layer.
        """
        ends = [layer + (where == "post") for layer in self.layers] + [text.num_layers]

        @cache
        def from_gate(gate: int, left: Grids) -> Any:
            if gate == len(self.layers):
                return 0.0
            if not self.eligible(gate, count_rows(left)):
                return after_gate(gate, left)
            options = self.options(gate, left)
            chances = [(probs[gate][e], g) for e, g in enumerate(options) if g is not None]
            total = sum(p for p, _ in chances)
            return sum(p * after_gate(gate, g) for p, g in chances) / total

        def after_gate(gate: int, left: Grids) -> Any:
            layers = ends[gate + 1] - ends[gate]
            return layers * text.layer_macs(count_rows(left)) + from_gate(gate + 1, left)

        return ends[0] * text.layer_macs(count_rows(grids)) + from_gate(0, grids)


def as_plan_kernels(kernels: Sequence[Any], num_layers: int) -> tuple[tuple[Kernel, ...], ...]:
    """Kernels per layer from one list for all layers, or from one list per layer."""
    per_layer = kernels if kernels and _is_nested(kernels[0]) else [kernels] * num_layers
    return tuple(tuple((int(k[0]), int(k[1])) for k in layer) for layer in per_layer)


def _is_nested(item: Any) -> bool:
    return len(item) > 0 and not isinstance(item[0], int)


class Choice(NamedTuple):
    """What `choose` picks at a gate.

    Attributes:
        experts: `[S]`.
        probs: `[S, E]`.
        read: see `Decision`.
    """

    experts: Tensor
    probs: Tensor
    read: Tensor | None = None


class PoolingRouter(Router):
    """At each layer of its plan, pools every sample's visual rows with the kernel that `choose`
    picks.
    """

    def __init__(
        self,
        layers: Sequence[int] | None,
        kernels: Sequence[Any],
        reduce: Literal["max", "avg", "conv"],
        where: Literal["pre", "post"],
        positions: Positions,
        min_rows: int,
        keep: float | None,
        *,
        text: TextShape,
        grid: Grid,
        min_pooled: int = 1,
    ):
        super().__init__(text=text, grid=grid)
        self.where, self.positions, self.reduce, self.keep = where, positions, reduce, keep
        layers = quarter_layers(text.num_layers) if layers is None else tuple(layers)
        self.plan = PoolingPlan(layers, as_plan_kernels(kernels, len(layers)), min_rows, min_pooled)

    def choose(
        self,
        gate: int,
        tokens: PackedTokens,
        samples: Sequence[int],
        allowed: Tensor,
        context: RoutingContext,
    ) -> Choice:
        """Pick an expert for each sample.

        Args:
            gate: place in the plan.
            tokens: the pack.
            samples: the S samples to decide about.
            allowed: bool `[S, E]` on the host.
            context: what else may be looked at.
        """
        raise TypeError(f"{type(self).__name__} does not say how it chooses")

    def scale(self, probs: Tensor, experts: Tensor) -> Tensor | None:
        """`[S]` factor of the visual rows of each routed sample; None leaves them as they are."""
        return None

    def weights(self, gate: int) -> list[Tensor | None] | None:
        """Convolution weights of each expert at a gate; None pools with `reduce`."""
        return None

    def routed(self, gate: int, tokens: PackedTokens, context: RoutingContext) -> tuple[int, ...]:
        """The samples that are large enough to be routed."""
        rows = tokens.visual_rows
        return tuple(b for b, n in enumerate(rows) if n > 0 and self.plan.eligible(gate, n))

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        """See `Router.between`; at most one host synchronisation."""
        if layer not in self.plan.layers:
            return tokens
        gate = self.plan.layers.index(layer)
        samples = self.routed(gate, tokens, context)
        grids = tuple(tuple(s.grid for s in tokens.spans if s.sample == b) for b in samples)
        options = [self.plan.options(gate, g) for g in grids]
        kernels = self.plan.kernels[gate]
        allowed = torch.tensor([[g is not None for g in o] for o in options], dtype=torch.bool)
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
            one = scale.new_ones(1)  # the factor of samples that are not routed
            index = [place.get(span.sample, len(samples)) for span in tokens.spans]
            scale = torch.cat([scale, one])[torch.tensor(index).to(scale.device)]
        return tokens.pool(
            kernels,
            reduce="max" if self.reduce == "conv" else self.reduce,
            weights=weights and [None if e is None else weights[e] for e in experts],
            scale=scale,
        )

    def rehearsed(self, most: bool) -> Router:
        """Every sample takes the kernel that leaves most or fewest rows, of those it may get."""
        sign = 1 if most else -1

        def pick(gate: int, samples: Sequence[int], allowed: Tensor, choice: Choice) -> Tensor:
            if choice.read is None:  # chances that no data change
                allowed = allowed & (choice.probs > 0)
            sizes = torch.tensor([sign * float(h * w) for h, w in self.plan.kernels[gate]])
            return sizes.expand(allowed.shape).masked_fill(~allowed, torch.inf).argmin(1)

        return self._picking(pick)

    def forced(self, route: Sequence[Any]) -> Router:
        """See `Router.forced`; `min_rows` is not looked at."""
        layers = len(self.plan.layers)
        if len(route) != layers:
            raise ValueError(
                f"It has {len(route)} kernels, the router picks one at {layers} layers."
            )
        takes = []
        for given, kernels in zip(route, self.plan.kernels, strict=True):
            try:
                in_turn = as_plan_kernels(given if _is_nested(given) else [given], 1)[0]
            except (TypeError, IndexError):
                raise ValueError(
                    f"{given} is neither a kernel [h, w] nor a list of some."
                ) from None
            if missing := [kernel for kernel in in_turn if kernel not in kernels]:
                raise ValueError(
                    f"It has kernel {missing[0]}, the router has {list(kernels)} there."
                )
            takes.append([kernels.index(kernel) for kernel in in_turn])

        def pick(gate: int, samples: Sequence[int], allowed: Tensor, choice: Choice) -> Tensor:
            return torch.tensor([takes[gate][b % len(takes[gate])] for b in samples])

        return self._picking(pick)

    def _picking(self, pick: Callable[[int, Sequence[int], Tensor, Choice], Tensor]) -> Router:
        """This router with other experts than its own choice, which is still computed."""
        router, choose = copy.copy(self), self.choose

        def chosen(gate: int, tokens: Any, samples: Any, allowed: Tensor, context: Any) -> Choice:
            choice = choose(gate, tokens, samples, allowed, context)
            experts = pick(gate, samples, allowed, choice)
            return choice._replace(experts=experts.to(choice.probs.device))

        router.choose = chosen  # type: ignore[method-assign]
        return router

    def check(self) -> list[str]:
        """Layers, kernels and keep that can not be."""
        return check_plan(self.plan, self.text, self.grid) + check_keep(self)

    def reach(self) -> tuple[float, float]:
        """The share if every sample took the smallest, or the largest, option everywhere."""
        shares = []
        for pick in (min, max):
            grids: Grids = (self.grid,)
            rows: list[int] = []
            for layer in range(self.text.num_layers):
                if self.where == "post":
                    rows.append(count_rows(grids))
                if layer in self.plan.layers and self.plan.eligible(
                    gate := self.plan.layers.index(layer), count_rows(grids)
                ):
                    allowed = [g for g in self.plan.options(gate, grids) if g is not None]
                    grids = pick(allowed, key=count_rows)
                if self.where == "pre":
                    rows.append(count_rows(grids))
            full = self.text.full_macs(count_rows((self.grid,)))
            shares.append(self.text.visual_macs(rows) / full)
        return shares[0], shares[1]


def check_plan(plan: PoolingPlan, text: TextShape, grid: Grid) -> list[str]:
    """A sentence for each layer beyond the depth and each kernel that no grid at its depth can
    fill.
    """
    problems = []
    if len(plan.kernels) != len(plan.layers):
        problems.append(
            f"router.kernels gives kernels for {len(plan.kernels)} layers, router.layers names"
            f" {len(plan.layers)}."
        )
    if list(plan.layers) != sorted(set(plan.layers)):
        problems.append(f"router.layers={list(plan.layers)} must be ascending without repeats.")
    for layer in plan.layers:
        if not 0 <= layer < text.num_layers:
            problems.append(
                f"router.layers names layer {layer}, the decoder has layers 0 to"
                f" {text.num_layers - 1}."
            )
    largest = grid
    for layer, kernels in zip(plan.layers, plan.kernels, strict=False):
        for kernel in kernels:
            height, width = kernel_on(largest, kernel)
            if min(kernel) < 1 or height > largest[0] or width > largest[1]:
                problems.append(
                    f"router.kernels has {list(kernel)} at layer {layer}, where the grid is at most"
                    f" {largest[0]} x {largest[1]}; take a smaller kernel there."
                )
        if kernels:
            usable = [(max(1, h), max(1, w)) for h, w in kernels]
            largest = max(
                (pooled_grid(largest, kernel_on(largest, k)) for k in usable),
                key=lambda g: g[0] * g[1],
            )
        else:
            problems.append(f"router.kernels has no kernel for layer {layer}.")
    return problems
