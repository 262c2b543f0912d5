"""The small networks that routers choose with, and what these read."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dpn.tokens import PackedTokens


class Gate(nn.Module):
    """Rates options: `[S, ...]` rows to `[S, E]` logits.

    Computes in fp32, whatever precision its weights are stored in. A unit of its own where engines
    share out weights, so every process calls it in every pass, be it with no rows.
    """


class SequentialGate(Gate, nn.Sequential):
    """Steps one after the other."""

    def forward(self, read: Tensor) -> Tensor:
        """Rows to logits."""
        with torch.autocast(read.device.type, enabled=False):
            out = read.float()
            for step in self:
                weights = {name: p.float() for name, p in step.named_parameters()}
                out = torch.func.functional_call(step, weights, (out,))
            return out


class MLPGate(SequentialGate):
    """LayerNorm, Linear(D, D/4), GELU, Linear(D/4, E) without biases: `[S, D] -> [S, E]` logits.

    Linear starts as in PyTorch, which is kaiming_uniform(a=sqrt(5)).
    """

    def __init__(self, width: int, experts: int):
        hidden = max(1, width // 4)
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, hidden, bias=False),
            nn.GELU(),
            nn.Linear(hidden, experts, bias=False),
        )


class ExitGate(SequentialGate):
    """Linear(D, hidden), GELU, Linear(hidden, 2) without biases: `[S, D]` to logits of two options.

    Linear starts as xavier_uniform.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__(
            nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, 2, bias=False)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again."""
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)


class LinearGate(Gate, nn.Linear):
    """Linear(D, E) without bias."""

    def __init__(self, width: int, experts: int):
        super().__init__(width, experts, bias=False)

    def forward(self, read: Tensor) -> Tensor:
        """`[S, D]` rows to `[S, E]` logits."""
        with torch.autocast(read.device.type, enabled=False):
            return nn.functional.linear(read.float(), self.weight.float())


def mean_rows(
    tokens: PackedTokens, samples: Sequence[int], columns: Sequence[Sequence[int]]
) -> Tensor:
    """Mean of the rows of some columns of each sample.

    Args:
        tokens: the pack.
        samples: S of them.
        columns: of `input_ids`, at least one of each of these samples.

    Returns:
        fp32 `[S, D]`.
    """
    counts = torch.tensor([len(own) for own in columns], dtype=torch.long)
    every = np.array([column for own in columns for column in own], dtype=np.int64)
    owner = torch.arange(len(samples)).repeat_interleave(counts)
    index = tokens.rows_of_columns(np.array(samples, dtype=np.int64)[owner.numpy()], every)
    taken = tokens.hidden.index_select(0, index).float()
    if len(taken) == len(samples):
        return taken
    device = taken.device
    total = taken.new_zeros(len(samples), taken.shape[1])
    total = total.index_add(0, owner.to(device, non_blocking=True), taken)
    return total / counts.to(device, non_blocking=True)[:, None]
