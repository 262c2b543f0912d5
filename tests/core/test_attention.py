"""Every attention backend equals attention of one sample at a time."""

import importlib.util
from typing import get_args

import pytest
import torch

from dpn.decoder.attention import (
    BACKENDS,
    PrefillAttention,
    pick_backend,
    working_dtype,
)
from dpn.decoder.backends import BackendName
from dpn.tokens import PackedTokens

KERNELS = ["varlen", "flash"]


def pack(lengths, device="cpu", dtype=torch.float32):
    hidden = torch.zeros(sum(lengths), 64, device=device, dtype=dtype)
    return PackedTokens(hidden, lengths, (0,) * len(lengths), ())


def rows_of(tokens, kv_heads):
    torch.manual_seed(0)
    like = {"device": tokens.hidden.device, "dtype": tokens.hidden.dtype, "requires_grad": True}
    shape = (len(tokens.hidden), 4, 16), *[(len(tokens.hidden), kv_heads, 16)] * 2
    return [torch.randn(*s, **like) for s in shape]


def naive(tokens, query, key, value):
    """Compute attention one sample at a time, by its definition."""
    parts, lengths = [], list(tokens.lengths)
    for q, k, v in zip(*(x.float().split(lengths) for x in (query, key, value)), strict=True):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
        unseen = torch.ones_like(scores, dtype=torch.bool).triu(1)
        probs = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", probs, v))
    return torch.cat(parts)


def check(backend, tokens, kv_heads, tolerance):
    rows = rows_of(tokens, kv_heads)
    out = BACKENDS[backend](PrefillAttention(tokens, backend), *rows, 0.3, 0.0)
    expected = naive(tokens, *rows)
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((out.float() * weight).sum(), rows)
    theirs = torch.autograd.grad((expected * weight).sum(), rows)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=4 * tolerance, rtol=4 * tolerance)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("lengths", [(3, 5, 3, 1, 5, 9), (4, 4, 4), (1,), (2, 2, 7)])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in KERNELS])
def test_a_backend_equals_naive_attention(backend, lengths, kv_heads):
    check(backend, pack(lengths), kv_heads, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("backend", KERNELS)
def test_a_gpu_kernel_equals_naive_attention(backend, kv_heads):
    if backend == "flash" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    tokens = pack((3, 5, 3, 1, 130, 9), "cuda", torch.bfloat16)
    assert pick_backend(tokens) == "varlen"
    check(backend, tokens, kv_heads, 2e-2)
    mixed = pack((3, 5, 3, 1, 130, 9), "cuda")
    assert pick_backend(mixed) != "varlen"
    with torch.autocast("cuda", torch.bfloat16):
        assert pick_backend(mixed) == "varlen"
        check(backend, mixed, kv_heads, 2e-2)


@pytest.mark.parametrize(
    ("lengths", "backend"),
    [
        ((9,) * 8, "segments"),  # one call anyway
        ((4, 6, 8, 12, 5, 9, 11, 7), "padded"),  # saves seven calls for little padding
        ((300, 600, 400, 500), "segments"),
        ((599, 600, 598, 600), "padded"),  # hardly any padding
    ],
)
def test_backend_chosen_by_auto_on_a_cpu(lengths, backend):
    assert pick_backend(pack(lengths)) == backend


def test_the_working_precision_is_that_of_autocast():
    rows = torch.zeros(2)
    assert working_dtype(rows) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert working_dtype(rows) == torch.bfloat16


def test_settings_name_every_backend():
    assert set(get_args(BackendName)) == {"auto", *BACKENDS}


@pytest.mark.parametrize("backend", KERNELS)
def test_a_gpu_kernel_is_refused_on_a_cpu(backend):
    tokens = pack((3, 5))
    with pytest.raises(ValueError, match=f"attention={backend} needs a CUDA device"):
        BACKENDS[backend](PrefillAttention(tokens, backend), *rows_of(tokens, 4), 0.3, 0.0)
