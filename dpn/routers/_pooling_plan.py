"""Kernels that may pool a sample at each layer, and the rows and MACs that result."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dpn.cost import TextShape
from dpn.tokens import Grid, Kernel, kernel_on, pooled_grid

Grids = tuple[Grid, ...]
PAPER_KERNELS: tuple[Kernel, ...] = ((1, 1), (1, 2), (2, 2))


def quarter_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers that end the first three quarters of a decoder: 7, 15 and 23 of 32."""
    return tuple(num_layers * k // 4 - 1 for k in (1, 2, 3))


def count_rows(grids: Grids) -> int:
    """Return the number of rows of all grids together."""
    return sum(h * w for h, w in grids)


@dataclass(frozen=True)
class PoolingPlan:
    """Layers at which rows are pooled, and the kernels that may be used there.

    Attributes:
        layers: Layers at which a kernel is chosen, ascending.
        kernels: Kernels of the experts at each of these layers.
        min_rows: Fewest rows that a kernel may leave of a sample.
        min_pooled: Fewest rows that a sample must have to be routed.
    """

    layers: tuple[int, ...]
    kernels: tuple[tuple[Kernel, ...], ...]
    min_rows: int = 1
    min_pooled: int = 1

    def eligible(self, gate: int, rows: int) -> bool:
        """Return whether a sample with `rows` visual rows is routed at a gate."""
        largest = max(h * w for h, w in self.kernels[gate])
        return rows >= max(largest, self.min_pooled)

    def options(
        self, gate: int, grids: Grids, tails: Sequence[int] | None = None
    ) -> tuple[Grids | None, ...]:
        """Return the grids that each expert of a gate leaves of a sample; None: not allowed.

        The expert that leaves most rows is always allowed.

        Args:
            gate: Index of the gate.
            grids: Grids of the sample's spans.
            tails: See `dpn.tokens.Span.tail`; default: no grid has newline tokens.
        """
        pairs = list(zip(grids, tails or (0,) * len(grids), strict=True))
        after = [
            tuple(pooled_grid(grid, kernel_on(grid, kernel), tail) for grid, tail in pairs)
            for kernel in self.kernels[gate]
        ]
        largest = max(map(count_rows, after))
        return tuple(g if count_rows(g) >= min(self.min_rows, largest) else None for g in after)

    def expected_macs(
        self,
        probs: Sequence[Any],
        grids: Grids,
        text: TextShape,
        where: str,
        tails: Sequence[int] | None = None,
    ) -> Any:
        """Return the expected visual MACs of one sample, with independent choices at all gates.

        Args:
            probs: Probability of each expert at each gate, `[E]`, or `[E, S]` for S samples of
                these grids; they are renormalised over the allowed experts, as in sampling.
            grids: Grids of the rows that enter the decoder.
            text: Sizes of the decoder.
            where: Whether a gate acts before (`pre`) or after (`post`) its layer.
            tails: See `options`.
        """
        ends = [layer + (where == "post") for layer in self.layers] + [text.num_layers]

        @cache
        def from_gate(gate: int, left: Grids) -> Any:
            if gate == len(self.layers):
                return 0.0
            if not self.eligible(gate, count_rows(left)):
                return after_gate(gate, left)
            options = self.options(gate, left, tails)
            chances = [(probs[gate][e], g) for e, g in enumerate(options) if g is not None]
            total = sum(p for p, _ in chances)
            return sum(p * after_gate(gate, g) for p, g in chances) / total

        def after_gate(gate: int, left: Grids) -> Any:
            layers = ends[gate + 1] - ends[gate]
            return layers * text.layer_macs(count_rows(left)) + from_gate(gate + 1, left)

        return ends[0] * text.layer_macs(count_rows(grids)) + from_gate(0, grids)


def as_plan_kernels(kernels: Sequence[Any], num_layers: int) -> tuple[tuple[Kernel, ...], ...]:
    """Return kernels per layer, given one list for all layers or one list per layer."""
    per_layer = kernels if kernels and is_nested(kernels[0]) else [kernels] * num_layers
    return tuple(tuple((int(k[0]), int(k[1])) for k in layer) for layer in per_layer)


def is_nested(item: Any) -> bool:
    """Return whether `item` is a list of kernels rather than one kernel."""
    return len(item) > 0 and not isinstance(item[0], int)


def check_plan(plan: PoolingPlan, text: TextShape, grid: Grid) -> list[str]:
    """Return an error sentence for each layer that the decoder does not have and each kernel that
    is larger than any grid at its layer.
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
                    f" {largest[0]} x {largest[1]}; use a smaller kernel there."
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
