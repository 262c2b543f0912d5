"""Dynamic pooling experts: the router of the Dynamic Pyramid Network (arXiv 2503.20322).

At each of its layers a gate reads the sample's `<ROUTER>` rows, chooses a pooling kernel for its
visual rows and multiplies these rows by the probability of that choice. Through this factor the
language loss alone trains the gate.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from dpn.common.ranges import AtLeast0, Positive
from dpn.routers._gates import Gate, LinearGate, MLPGate, mean_rows
from dpn.routers._pooling import GateChoice, PoolingRouter
from dpn.routers._pooling_plan import PAPER_KERNELS
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.routers.random import draw
from dpn.tokens import PackedTokens, Positions


class DPERouter(PoolingRouter):
    """Pools visual rows with the kernel that a learned gate chooses.

    The defaults are those of the released training call.

    Args:
        layers: 0-based indices of the layers with a gate; default: those that end the first, second
            and third quarter of the decoder.
        kernels: Kernels [h, w] of the experts, one list for all layers or one list per layer.
        reduce: `max`, `avg` or `conv` (learned depthwise convolution, initialised as the average).
        where: Whether rows are pooled after the layer (`post`) or before it (`pre`).
        positions: `renumber` or `keep`, see `dpn.tokens.packed.PackedTokens`.
        min_rows: Fewest rows that an expert may leave of a sample; `reference`: 18 in training, no
            limit in evaluation, and samples below 16 rows are never routed. Converted DPN models
            have `reference`.
        eligibility: `sample`: a sample is routed if it has at least as many rows as the largest
            kernel; `reference`: samples are routed only if all of the batch have, so none is
            beside a sample of text alone. As released; a route then depends on the batch.
        gate: `mlp`: LayerNorm, Linear(D, D/4), GELU, Linear(D/4, E) without biases; `linear`:
            Linear(D, E).
        temperature: Divisor of the gate's logits.
        token: Tokens that the gate reads: the `<ROUTER>` tokens (`router`) or the last instruction
            token before the first answer (`last`).
        read: `<ROUTER>` tokens of a conversation that are averaged: `all`, or only the `first`,
            which no answer precedes.
        detach: Whether the gate's gradient stops at the rows that it reads.
        keep: Target share of visual MACs in evaluation, met by a price on rows that is found after
            training.
    """

    meets_keep = "roughly"
    own_weights = True
    lossless = False  # rows are multiplied by the probability of the chosen expert
    uncounted_flops = True
    calibrated: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("hinge", "budget", "policy")
    price: Tensor

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        kernels: Sequence[Any] = PAPER_KERNELS,
        reduce: Literal["max", "avg", "conv"] = "max",
        where: Literal["pre", "post"] = "post",
        positions: Positions = "renumber",
        min_rows: AtLeast0 | Literal["reference"] = 18,
        eligibility: Literal["sample", "reference"] = "sample",
        gate: Literal["mlp", "linear"] = "mlp",
        temperature: Positive = 10.0,
        token: Literal["router", "last"] = "router",
        read: Literal["all", "first"] = "all",
        detach: bool = False,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        super().__init__(layers, kernels, reduce, where, positions, min_rows, keep, **sizes)
        self.eligibility, self.temperature, self.token = eligibility, temperature, token
        self.read, self.detach = read, detach
        width = self.text.hidden_size
        self.gates = nn.ModuleDict(
            {
                str(layer): GATES[gate](width, len(experts))
                for layer, experts in zip(self.plan.layers, self.plan.kernels, strict=False)
            }
        )
        self.experts = nn.ModuleDict()
        if reduce == "conv":
            for layer, experts in zip(self.plan.layers, self.plan.kernels, strict=False):
                shapes = [(width, 1, h, w) for h, w in experts]
                self.experts[str(layer)] = nn.ParameterList([torch.empty(s) for s in shapes])
        # In evaluation, the price times the share of rows that an expert keeps is subtracted from
        # the logits. It biases the gate itself, so rows are scaled by the resulting probability.
        # `dpn.training.calibration` finds it.
        self.register_buffer("price", torch.empty((), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the experts of `reduce=conv` as averages and the price as zero."""
        nn.init.zeros_(self.price)
        for weight in self.experts.parameters():
            nn.init.constant_(weight, 1 / (weight.shape[2] * weight.shape[3]))

    def routed(self, gate: int, tokens: PackedTokens, context: RoutingContext) -> tuple[int, ...]:
        largest = max(h * w for h, w in self.plan.kernels[gate])
        if self.eligibility == "reference" and min(tokens.visual_rows) < largest:
            return ()  # also if a sample has no image
        return super().routed(gate, tokens, context)

    def read_rows(
        self, tokens: PackedTokens, samples: Sequence[int], context: RoutingContext
    ) -> Tensor:
        """Average the rows that the gate reads, fp32 `[S, D]`.

        For a sample without `<ROUTER>` token, and with `token=last`, it reads the last instruction
        row.
        """
        columns = []
        for sample in samples:
            own = context.router_columns[sample] if self.token == "router" else ()
            own = own or (context.instruction[sample][1] - 1,)
            columns.append(own[:1] if self.read == "first" else own)
        mean = mean_rows(tokens, samples, columns)
        return mean.detach() if self.detach else mean

    def choose(
        self,
        gate: int,
        tokens: PackedTokens,
        samples: Sequence[int],
        allowed: Tensor,
        context: RoutingContext,
    ) -> GateChoice:
        """Sample from the gate's softmax in training; use the most probable expert otherwise."""
        layer = self.plan.layers[gate]
        read = self.read_rows(tokens, samples, context)
        logits = self.gates[str(layer)](read) / self.temperature
        if not context.training:
            logits = logits - self.price * self.kept_shares(gate).to(logits.device)
        probs = logits.softmax(-1)
        allowed = allowed.to(probs.device, non_blocking=True)
        if context.training:
            uniform = context.uniform(layer, samples).to(probs.device, non_blocking=True)
            return GateChoice(draw(probs.detach(), allowed, uniform), probs, read.detach())
        best = logits.masked_fill(~allowed, -torch.inf).argmax(-1)
        return GateChoice(best, probs, read.detach())

    def kept_shares(self, gate: int) -> Tensor:
        """Return the share of the rows that each expert keeps, `[E]` on the host."""
        return torch.tensor([1 / (h * w) for h, w in self.plan.kernels[gate]])

    def scale(self, probs: Tensor, experts: Tensor) -> Tensor:
        """Return the chosen expert's probability, also for the identity."""
        return probs.gather(1, experts[:, None])[:, 0]

    def weights(self, gate: int) -> list[Tensor | None] | None:
        if self.reduce != "conv":
            return None
        return list(self.experts[str(self.plan.layers[gate])].parameters())


GATES: dict[str, type[Gate]] = {"mlp": MLPGate, "linear": LinearGate}
