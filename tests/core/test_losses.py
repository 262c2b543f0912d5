"""Routing losses against hand-computed values."""

import math

import pytest
import torch

from dpn import losses, routers
from dpn.cost import TextShape
from dpn.tokens import Decision, Trace

TEXT = TextShape(8, 96, 96, 256)
GRID = ((8, 8),)


def router(**arguments):
    return routers.build("dpe", min_rows=1, **arguments, text=TEXT, grid=(8, 8))


def trace(*probs):
    decisions = [
        Decision(layer, (0, 1), (GRID, GRID), p.argmax(-1), p, (1, 1))
        for layer, p in zip((1, 3, 5), probs, strict=False)
    ]
    return Trace((GRID, GRID), (GRID, GRID), [], decisions)


P1 = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
P2 = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])


def test_hinge_per_layer_and_reference():
    # s * p of the argmax: layer 1: 2*0.5, 0*0.6 -> mean 0.5; layer 2: 1*0.8, 2*0.8 -> mean 1.2
    per_layer = losses.build("hinge", router=router())(trace(P1, P2))
    assert per_layer == pytest.approx(0.001 * (1.0 + 0.3) / 2)
    together = losses.build("hinge", hinge_mean="reference", router=router())(trace(P1, P2))
    assert together == pytest.approx(0.001 * (1.5 - 0.85))
    capped = torch.tensor([[0.0, 0.0, 1.0]] * 2)
    assert losses.build("hinge", router=router())(trace(capped)) == 0.0


def test_hinge_has_no_gradient_for_an_identity_argmax():
    logits = torch.zeros(2, 3, requires_grad=True)
    probs = (logits + torch.tensor([1.0, 0.0, 0.0])).softmax(-1)
    losses.build("hinge", router=router())(trace(probs)).backward()
    assert logits.grad.abs().max() == 0


def test_budget_equals_the_expected_share():
    loss = losses.build("budget", weight=2.0, router=router(keep=0.5))
    p = [P1, P2, P1.flip(0)]
    total = 0.0
    for b in range(2):
        for i, k in enumerate(((1, 1), (1, 2), (2, 2))):
            for j, m in enumerate(((1, 1), (1, 2), (2, 2))):
                for e, n in enumerate(((1, 1), (1, 2), (2, 2))):
                    rows, seen = 64, [64, 64]
                    for kernel in (k, m, n):
                        rows = rows if rows < 4 else rows // (kernel[0] * kernel[1])
                        seen += [rows, rows]
                    chance = p[0][b, i] * p[1][b, j] * p[2][b, e]
                    total += chance * TEXT.visual_macs(seen) / TEXT.visual_macs([64] * 8) / 2
    got = loss(trace(*p))
    assert got == pytest.approx(2.0 * (float(total) - 0.5) ** 2, rel=1e-4)


def test_budget_moves_every_expert_towards_keep():
    for keep, sign in ((0.35, 1), (0.99, -1)):
        logits = [torch.zeros(2, 3, requires_grad=True) for _ in range(3)]
        loss = losses.build("budget", router=router(keep=keep))
        loss(trace(*[x.softmax(-1) for x in logits])).backward()
        for x in logits:
            assert (x.grad[:, 0] * sign > 0).all()
            assert (x.grad[:, 2] * sign < 0).all()


READ = torch.arange(2 * 96.0).view(2, 96).sin()


def chosen(probs, experts, sample_loss, layer=1, grid=GRID):
    """Return a trace of one gate that drew the given experts."""
    decision = Decision(layer, (0, 1), (grid, grid), torch.tensor(experts), probs, (1, 1), READ)
    loss = torch.tensor(sample_loss)
    return Trace((GRID, GRID), (GRID, GRID), [], [decision], sample_loss=loss)


def test_policy_equals_a_hand_computed_value():
    loss = losses.build(
        "policy", policy_weight=3.0, entropy_weight=2.0, router=router(keep=0.5, layers=[1])
    )
    budget = losses.build("budget", router=router(keep=0.5, layers=[1]))
    v = loss.values["1"](READ)[:, 0].detach()
    got = loss(chosen(P1, [2, 1], [0.7, float("nan")]))
    error = 0.7 - v[0]  # the second sample has no supervised tokens
    entropy = -sum(p * math.log(p) for p in P1.flatten().tolist()) / 2
    want = (error**2 + 3.0 * error * math.log(0.5)) / 2 - 2.0 * entropy
    assert float((got - budget(trace(P1))).detach()) == pytest.approx(float(want), rel=1e-5)
    # At a grid of 2 x 2 the 2 x 2 kernel leaves one row, which min_rows=2 does not allow.
    few = routers.build("dpe", min_rows=2, keep=0.5, text=TEXT, grid=(8, 8))
    assert torch.allclose(
        losses.build("policy", router=few)._drawn_probs(
            chosen(P1, [1, 0], [0, 0], 1, ((2, 2),)).decisions[0]
        ),
        torch.tensor([0.3 / 0.5, 0.6 / 0.9]),
    )


def test_policy_prefers_experts_with_less_loss_than_expected():
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = losses.build(
        "policy", weight=0.0, entropy_weight=0.0, router=router(keep=0.5, layers=[1])
    )
    v = loss.values["1"](READ)[:, 0].detach()
    loss(chosen(logits.softmax(-1), [0, 2], [v[0] - 1, v[1] + 1])).backward()
    assert (
        logits.grad.sign() == torch.tensor([[-1, 1, 1], [-1, -1, 1]])
    ).all()  # descent adds -grad


def test_value_heads_learn_the_expected_loss():
    loss = losses.build(
        "policy",
        weight=0.0,
        policy_weight=0.0,
        entropy_weight=0.0,
        router=router(keep=0.5, layers=[1]),
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(60):
        value = loss(chosen(P1, [0, 0], [0.2, 1.5]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    expected = loss.values["1"](READ)[:, 0]
    torch.testing.assert_close(expected, torch.tensor([0.2, 1.5]), atol=0.05, rtol=0)


def test_policy_needs_gates_that_read():
    with pytest.raises(ValueError, match="gates that read rows"):
        losses.build("policy", router=router(keep=0.5, layers=[1]))(trace(P1))


def test_budget_needs_keep():
    with pytest.raises(ValueError, match=r"router\.keep"):
        losses.build("budget", router=router())


def test_a_trace_without_decisions_has_no_loss():
    empty = Trace(((), ()), ((), ()))
    assert losses.build("hinge", router=router())(empty) == 0.0
    assert losses.build("budget", router=router(keep=0.5))(empty) == 0.0
    assert losses.build("policy", router=router(keep=0.5))(empty) == 0.0
    assert losses.build("language", router=router())(trace(P1)) == 0.0
