"""Fixed pooling: the same kernel for every sample at each layer."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from dpn.common.ranges import AtLeast0
from dpn.cost import TextShape
from dpn.routers._pooling import GateChoice, PoolingRouter
from dpn.routers._pooling_plan import PAPER_KERNELS, PoolingPlan, count_rows, quarter_layers
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import Block, Kernel, PackedTokens, Positions


class StaticRouter(PoolingRouter):
    """Pools every sample with the same kernels; DPN's `pooling_type: static`.

    Args:
        layers: 0-based indices of the layers that pool; default: those that end the first, second
            and third quarter of the decoder.
        kernels: One kernel [h, w] per layer, or one for all layers.
        reduce: `max` or `avg`.
        where: Whether rows are pooled after the layer (`post`) or before it (`pre`).
        positions: `renumber` or `keep`, see `dpn.tokens.packed.PackedTokens`.
        min_rows: Fewest rows that a kernel may leave of a sample; otherwise it is not applied.
        keep: Target share of visual MACs; the combination of 1x1, 1x2 and 2x2 kernels whose share
            is closest to it replaces `kernels`.
    """

    meets_keep = "roughly"

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        kernels: Sequence[Any] = (2, 2),
        reduce: Literal["max", "avg"] = "max",
        where: Literal["pre", "post"] = "post",
        positions: Positions = "renumber",
        min_rows: AtLeast0 = 1,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        layers = quarter_layers(sizes["text"].num_layers) if layers is None else tuple(layers)
        if keep is not None:
            blocks = sizes.get("blocks") or [Block(sizes["grid"])]
            kernels = kernels_for_share(keep, layers, where, sizes["text"], blocks)
        per_layer = [kernels] * len(layers) if isinstance(kernels[0], int) else kernels
        # The identity comes second, for samples that are too small for the kernel.
        pairs = [[tuple(kernel), (1, 1)] for kernel in per_layer]
        super().__init__(layers, pairs, reduce, where, positions, min_rows, keep, **sizes)

    def choose(
        self,
        gate: int,
        tokens: PackedTokens,
        samples: Sequence[int],
        allowed: Tensor,
        context: RoutingContext,
    ) -> GateChoice:
        experts = (~allowed[:, 0]).long()
        return GateChoice(experts, torch.nn.functional.one_hot(experts, 2).float())

    def reach(self) -> tuple[float, float]:
        # The shares of 2 x 2 pooling at every layer and of none.
        layers = self.plan.layers
        shares = [
            _share((kernel,) * len(layers), layers, self.where, self.text, self.blocks)
            for kernel in (PAPER_KERNELS[-1], PAPER_KERNELS[0])
        ]
        return shares[0], shares[1]


def kernels_for_share(
    keep: float, layers: tuple[int, ...], where: str, text: TextShape, blocks: Sequence[Block]
) -> tuple[Kernel, ...]:
    """Return the kernels, of 1x1, 1x2 and 2x2, whose share of visual MACs is closest to `keep`."""
    return min(
        product(PAPER_KERNELS, repeat=len(layers)),
        key=lambda kernels: abs(_share(kernels, layers, where, text, blocks) - keep),
    )


def _share(
    kernels: Sequence[Kernel],
    layers: tuple[int, ...],
    where: str,
    text: TextShape,
    blocks: Sequence[Block],
) -> float:
    plan = PoolingPlan(layers, tuple((kernel,) for kernel in kernels))
    grids, tails = zip(*blocks, strict=True)
    macs = plan.expected_macs([[1.0]] * len(layers), grids, text, where, tails)
    return macs / text.full_macs(count_rows(grids))
