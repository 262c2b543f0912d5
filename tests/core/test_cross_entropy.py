"""The chunked cross entropy equals the plain one and needs less memory."""

import pytest
import torch
import torch.nn.functional as F

import dpn.model.cross_entropy
from dpn.metrics.memory import ResourceMeter


def loss_and_gradient(logits, targets, weight):
    logits = logits.detach().requires_grad_()
    losses = dpn.model.cross_entropy.cross_entropy(logits, targets)
    (losses * weight).sum().backward()
    return losses.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 8, 20])
def test_chunks_give_the_same_loss_and_gradients(monkeypatch, rows, dtype):
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


def test_no_fp32_copy_of_all_logits_is_held(monkeypatch):
    """At the peak, each logit and its gradient take two bytes each; there are no twelve further
    bytes for an fp32 copy, its logarithm and their gradients.
    """
    logits = torch.zeros(1024, 512, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(1024, dtype=torch.long)
    peaks = []
    for chunk in (logits.numel(), logits.numel() // 64):
        monkeypatch.setattr(dpn.model.cross_entropy, "CHUNK", chunk)
        with ResourceMeter([logits]) as meter:
            (2 * dpn.model.cross_entropy.cross_entropy(logits * 1, targets)).sum().backward()
        peaks.append(meter.peak.total() / (2 * logits.numel()))
        logits.grad = None
    assert peaks == pytest.approx([6, 2], rel=0.05)
