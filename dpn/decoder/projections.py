"""Linear layers of a stock decoder layer, computed for a part of their inputs or outputs."""

import sys
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dpn.common.errors import SettingError

#: Indices of a linear layer's inputs or outputs; None: all.
Units = Tensor | slice | None


def units_of(heads: Tensor | None, size: int) -> Units:
    """Return the indices of some heads of `size` units among a projection's inputs or outputs."""
    if heads is None:
        return None
    return (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()


def _divisible(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a linear layer's product can be computed from a part of its weight."""
    plain = type(linear) is nn.Linear
    return plain and not is_traceable_wrapper_subclass(linear.weight)  # a quantised tensor


def outputs(linear: nn.Module, x: Tensor, units: Units = None) -> Tensor:
    """Compute some outputs of a linear layer (with LoRA or quantised weights: compute all and
    select).
    """
    if units is None:
        return linear(x)
    if not _divisible(linear):
        return linear(x)[..., units]
    return F.linear(x, linear.weight[units], None if linear.bias is None else linear.bias[units])


def inputs(linear: nn.Module, x: Tensor, units: Units = None) -> Tensor:
    """Apply a linear layer to some of its inputs; the others count as zero."""
    if units is None:
        return linear(x)
    if not _divisible(linear):
        width: Any = getattr(linear, "in_features", None)
        if width is None:
            raise SettingError(
                f"{type(linear).__name__} does not tell its number of in_features, so a router"
                " cannot use a part of them; use a router that acts between layers."
            )
        full = x.new_zeros(*x.shape[:-1], width)
        full[..., units] = x
        return linear(full)
    return F.linear(x, linear.weight[:, units], linear.bias)


def rotated(
    attention: Any, kind: str, normed: Tensor, cos: Tensor, sin: Tensor, heads: Tensor | None = None
) -> Tensor:
    """Compute rotated queries (`q`) or keys (`k`) of some heads like the stock attention.

    Args:
        attention: Stock attention module.
        kind: `q` or `k`.
        normed: Hidden states after the layer's first norm, `[n, D]`.
        cos: Rotary cosines of each row, `[n, Dh]`.
        sin: Rotary sines of each row, `[n, Dh]`.
        heads: Indices of the heads; default: all.

    Returns:
        Queries or keys `[n, heads, Dh]`.
    """
    size = attention.head_dim
    made = outputs(getattr(attention, f"{kind}_proj"), normed, units_of(heads, size))
    made = made.unflatten(-1, (-1, size))
    norm = getattr(attention, f"{kind}_norm", None)  # Qwen3
    made = (made if norm is None else norm(made)).transpose(0, 1)[None]  # [1, heads, n, Dh]
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb  # the stock model's own
    return rotate(made, made, cos[None], sin[None])[0].squeeze(0).transpose(0, 1)
