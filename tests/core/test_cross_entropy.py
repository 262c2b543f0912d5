"""Losses in chunks equal those in one piece, in less memory."""

import pytest
import torch
import torch.nn.functional as F

import dpn.model.cross_entropy
from dpn.metrics.memory import Watch


def loss_and_gradient(logits, targets, weight):
    logits = logits.detach().requires_grad_()
    losses = dpn.model.cross_entropy.cross_entropy(logits, targets)
    (losses * weight).sum().backward()
    return losses.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 8, 20])
def test_chunks_change_nothing(monkeypatch, rows, dtype):
    torch.manual_seed(0)
    logits, targets = 5 * torch.randn(rows, 11, dtype=dtype), torch.randint(11, (rows,))
    weight = torch.rand(rows)
    whole = loss_and_gradient(logits, targets, weight)
    expected = F.cross_entropy(logits.double(), targets, reduction="none")
    monkeypatch.setattr(dpn.model.cross_entropy, "CHUNK", 4 * 11)
    losses, gradient = loss_and_gradient(logits, targets, weight)
    torch.testing.assert_close(losses, expected.float(), atol=1e-5, rtol=1e-5)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, whole[0])
    assert torch.equal(gradient, whole[1])


def test_logits_are_held_in_their_own_precision_alone(monkeypatch):
    """At the highest moment there are two bytes of each logit and of its gradient, not twelve
    of each of its copy, its logarithm and their gradients besides.
    """
    logits = torch.zeros(1024, 512, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(1024, dtype=torch.long)
    peaks = []
    for chunk in (logits.numel(), logits.numel() // 64):
        monkeypatch.setattr(dpn.model.cross_entropy, "CHUNK", chunk)
        with Watch([logits]) as watch:
            (2 * dpn.model.cross_entropy.cross_entropy(logits * 1, targets)).sum().backward()
        peaks.append(watch.peak.total() / (2 * logits.numel()))
        logits.grad = None
    assert peaks == pytest.approx([6, 2], rel=0.05)
