"""The strength that scales YOPO's four methods together; test_within tests their masks."""

from itertools import pairwise

import pytest
import torch

from dpn import routers
from dpn.cost import TextShape

LLAVA = TextShape(32, 4096, 4096, 11008, kv_heads=32)


def yopo(**arguments):
    return routers.build("yopo", **arguments, text=LLAVA, grid=(24, 24))


def parts_of(router, strength):
    """Return (radius, units of the FFN, active heads, layers with visual rows)."""
    parts = router.parts(strength)
    heads = [p.heads if p else range(32) for p in parts["head_pruning"].plans]
    return (
        parts["neighbor_attention"].plans[0].radius,
        parts["sparse_ffn"].plans[0].ffn,
        sum(map(len, heads)),
        parts["layer_drop"].strength,
    )


def test_one_strength_scales_all_four():
    router = yopo(scores=torch.rand(32, 32).tolist(), threshold=0.25, k=20, ratio=4.0)
    none, half, one, double = (parts_of(router, s) for s in (0.0, 0.5, 1.0, 2.0))
    assert none == (24, 11008, 1024, 32)
    assert half[:2] + half[3:] == (4, 6880, 26)
    assert one[:2] + one[3:] == (2, 2752, 20)
    assert double[:2] + double[3:] == (1, 1, 8)
    scores = torch.tensor(router.scores)[2:]
    for found, threshold in ((half, 0.125), (one, 0.25), (double, 0.5)):
        assert found[2] == 64 + int((scores > threshold).sum())
    shares = [router.share(s / 10) for s in range(40)]
    assert all(a >= b for a, b in pairwise(shares))
    assert router.reach() == (0.0, 1.0)


@pytest.mark.parametrize("scores", [None, torch.rand(32, 32).tolist()])
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.9])
def test_keep_is_met(keep, scores):
    router = yopo(scores=scores, threshold=0.2, keep=keep)
    assert router.check() == []
    macs = 0
    for n in range(32):
        plan = router.within(n, None, None)
        if n < router.members[2].strength:  # later layers have no visual rows
            lines = min(24, 2 * plan.radius + 1)
            heads = 32 if plan.heads is None else len(plan.heads)
            macs += 576 * 4096 * (4096 + 3 * plan.ffn)
            macs += (3 * 576 * 4096**2 + 2 * 576 * lines * 24 * 4096) * heads // 32
    assert macs / LLAVA.visual_macs([576] * 32) == pytest.approx(keep, abs=0.016)


def test_reference_computes_the_visual_rows_of_deep_layers():
    router = yopo(k=20, radius=2, ratio=4.0, reference=True)
    assert router.check() == []
    assert [router.within(n, None, None).mute for n in range(32)] == [False] * 20 + [True] * 12
    half = yopo(k=20, radius=2, ratio=4.0, keep=0.5, reference=True)
    assert half.check() == []
    (plan,) = {half.within(n, None, None).ffn for n in range(32)}
    assert half.share(1.0) > yopo(k=20).share(1.0)
    assert plan < LLAVA.ffn_size
    layer_drop = routers.build("layer_drop", reference=True, keep=0.5, text=LLAVA, grid=(24, 24))
    assert "cannot be met with router.reference=true" in layer_drop.check()[0]


def test_problems_name_the_method():
    problems = yopo(k=33, ratio=0.0, scores=[[0.1]]).check()
    assert [p.partition(":")[0] for p in problems] == [
        *("sparse_ffn", "layer_drop", "layer_drop", "head_pruning"),
    ]
