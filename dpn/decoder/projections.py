"""The linear layers of a stock decoder layer, for some of their inputs or outputs."""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Places in what a linear layer gives or takes; None: all.
Units = Tensor | slice | None


def units_of(heads: Tensor | None, size: int) -> Units:
    """The places of some heads in what a projection gives or takes."""
    if heads is None:
        return None
    return (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()


def outputs(linear: nn.Module, x: Tensor, units: Units = None) -> Tensor:
    """Some outputs of a linear layer, the others not computed (with LoRA beside it they are)."""
    if units is None:
        return linear(x)
    if type(linear) is not nn.Linear:
        return linear(x)[..., units]
    return F.linear(x, linear.weight[units], None if linear.bias is None else linear.bias[units])


def inputs(linear: nn.Module, x: Tensor, units: Units = None) -> Tensor:
    """A linear layer whose other inputs are zero."""
    if units is None:
        return linear(x)
    if type(linear) is not nn.Linear:
        full = x.new_zeros(*x.shape[:-1], linear.in_features)  # type: ignore[call-overload]
        full[..., units] = x
        return linear(full)
    return F.linear(x, linear.weight[:, units], linear.bias)


def rotated(
    attention: Any, kind: str, normed: Tensor, cos: Tensor, sin: Tensor, heads: Tensor | None = None
) -> Tensor:
    """Queries (`q`) or keys (`k`) of some heads as the stock attention makes them.

    Args:
        attention: the stock attention module.
        kind: `q` or `k`.
        normed: `[n, D]`.
        cos: `[n, Dh]`, with `sin` the rotation of each row.
        sin: see cos.
        heads: which; default: all.

    Returns:
        `[n, heads, Dh]`.
    """
    size = attention.head_dim
    made = outputs(getattr(attention, f"{kind}_proj"), normed, units_of(heads, size))
    made = made.unflatten(-1, (-1, size))
    norm = getattr(attention, f"{kind}_norm", None)  # Qwen3
    made = (made if norm is None else norm(made)).transpose(0, 1)[None]  # [1, heads, n, Dh]
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb  # the stock model's own
    return rotate(made, made, cos[None], sin[None])[0].squeeze(0).transpose(0, 1)
