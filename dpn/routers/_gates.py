"""Small networks with which routers choose, and the rows that they read."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dpn.tokens import PackedTokens


class Gate(nn.Module):
    """Base class of gates, which turn rows `[S, ...]` into logits `[S, E]` of E options.

    Gates compute in fp32 whatever the precision of their weights. Engines that shard weights gather
    each gate's weights when it is called, so every process must call it in every pass, even without
    rows.
    """


class SequentialGate(Gate, nn.Sequential):
    """A gate of several modules, applied one after the other."""

    def forward(self, read: Tensor) -> Tensor:
        with torch.autocast(read.device.type, enabled=False):
            out = read.float()
            for step in self:
                weights = {name: p.float() for name, p in step.named_parameters()}
                out = torch.func.functional_call(step, weights, (out,))
            return out


class MLPGate(SequentialGate):
    """LayerNorm, Linear(D, D/4), GELU, Linear(D/4, E) without biases: rows `[S, D]` to logits
    `[S, E]`.

    Its linear layers have PyTorch's initial values, kaiming_uniform(a=sqrt(5)).
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
    """Linear(D, hidden), GELU, Linear(hidden, 2) without biases: rows `[S, D]` to logits `[S, 2]`.

    Its linear layers are initialised with xavier_uniform.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__(
            nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, 2, bias=False)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)


class LinearGate(Gate, nn.Linear):
    """Linear(D, E) without bias: rows `[S, D]` to logits `[S, E]`."""

    def __init__(self, width: int, experts: int):
        super().__init__(width, experts, bias=False)

    def forward(self, read: Tensor) -> Tensor:
        with torch.autocast(read.device.type, enabled=False):
            return nn.functional.linear(read.float(), self.weight.float())


def mean_rows(
    tokens: PackedTokens, samples: Sequence[int], columns: Sequence[Sequence[int]]
) -> Tensor:
    """Average the rows of some columns of each sample.

    Args:
        tokens: The pack.
        samples: Indices of S samples.
        columns: Columns of `input_ids` for each of these samples, at least one.

    Returns:
        Means in fp32, `[S, D]`.
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
