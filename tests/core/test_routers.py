"""What routers decide, and what that may depend on."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from dpn import routers
from dpn.cost import TextShape
from dpn.routers._pooling_plan import PoolingPlan, quarter_layers
from dpn.routers.base import RoutingContext
from dpn.routers.random import draw
from dpn.tokens import Trace

from .conftest import ROUTER, collate, make_model, make_samples

TEXT = TextShape(8, 96, 96, 256)
LLAVA = TextShape(32, 4096, 4096, 11008)
DPE = {"name": "dpe", "layers": [0, 2], "min_rows": 1}


def build(name, text=LLAVA, grid=(24, 24), **arguments):
    return routers.build(name, **arguments, text=text, grid=grid)


def test_names():
    assert {"none", "static", "random", "dpe"} <= set(routers.names())
    with pytest.raises(ValueError, match=r"no router named .dpee.; there is .*dpe"):
        routers.resolve("dpee")


def test_quarters():
    assert [quarter_layers(n) for n in (32, 8, 40)] == [(7, 15, 23), (1, 3, 5), (9, 19, 29)]


def test_paper_gate():
    gate = build("dpe", text=TextShape(32, 64, 64, 96)).gates["15"]
    assert [type(m).__name__ for m in gate] == ["LayerNorm", "Linear", "GELU", "Linear"]
    assert gate[1].weight.shape == (16, 64)
    assert gate[3].weight.shape == (3, 16)
    assert gate[1].bias is None
    assert gate[3].bias is None
    bound = math.sqrt(1 / 64)  # kaiming_uniform(a=sqrt(5)): uniform in +- 1 / sqrt(fan_in)
    assert bound * 0.9 < gate[1].weight.abs().max() <= bound


def test_temperature_divides_and_rows_are_scaled():
    model = make_model({**DPE, "temperature": 7.0}, seed=3)
    out = model(**collate(make_samples()))
    decision = out.trace.decisions[0]
    model.router.temperature = 1.0
    hot = model(**collate(make_samples())).trace.decisions[0].probs
    torch.testing.assert_close((hot.log() / 7.0).softmax(-1), decision.probs)


def test_without_compression_a_model_is_one_with_router_none():
    model, none = make_model(DPE), make_model()
    none.load_state_dict(model.state_dict(), strict=False)
    batch = collate(make_samples())
    out = model.train()(**batch, compress=False, return_logits=True)
    assert not out.trace.decisions
    assert torch.equal(out.logits, none(**batch).logits)
    assert not torch.equal(out.logits, model(**batch, return_logits=True).logits)


@pytest.mark.parametrize("read", ["all", "first"])
def test_answers_never_change_a_route(read):
    """In training and evaluation; the last answers change (read=all) or all of them (first)."""
    model = make_model({**DPE, "read": read}, seed=3)
    samples = make_samples()
    changed = []
    for ids, labels, images in samples:
        ids, labels = ids.clone(), labels.clone()
        answer = labels != -100
        if read == "all":  # <ROUTER> of a later turn follows earlier answers
            last_router = (ids == ROUTER).nonzero()
            answer[: int(last_router[-1]) if len(last_router) else 0] = False
        ids[answer] = (ids[answer] + 7) % 40 + 3
        labels[answer] = ids[answer]
        changed.append((ids, labels, images))
    for training in (False, True):
        model.train(training)
        for step in range(3):
            a = model(**collate(samples), step=step).trace
            b = model(**collate(changed), step=step).trace
            assert len(a.decisions) == 2
            for one, two in zip(a.decisions, b.decisions, strict=True):
                assert torch.equal(one.experts, two.experts)
                torch.testing.assert_close(one.probs, two.probs)


def test_draws_are_keyed_by_seed_step_and_sample_not_by_place():
    model = make_model({"name": "random", "layers": [0, 2], "min_rows": 1}).train()
    samples = make_samples() * 3
    ids = torch.arange(len(samples)) + 100

    def routes(order, **keys):
        batch = collate([samples[i] for i in order])
        trace = model(**batch, sample_ids=ids[order], **keys).trace
        return {int(ids[i]): trace.experts_of(place) for place, i in enumerate(order)}

    everyone = list(range(len(samples)))
    base = routes(everyone, step=3, seed=1)
    assert routes(everyone[::-1], step=3, seed=1) == base
    assert routes(everyone[4:9], step=3, seed=1) == {k: base[k] for k in range(104, 109)}
    assert routes(everyone, step=4, seed=1) != base
    assert routes(everyone, step=3, seed=2) != base
    model.eval()
    assert routes(everyone, step=0) == routes(everyone, step=0)


def test_uniform_is_uniform_and_draw_follows_the_probabilities():
    keys = np.arange(30000, dtype=np.uint64)
    context = RoutingContext((), (), keys, True, 0, 5, Trace((), ()))
    u = context.uniform(7, range(30000))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01
    assert abs((u < 0.1).double().mean() - 0.1) < 0.01
    other = context.uniform(8, range(30000))
    assert abs(torch.corrcoef(torch.stack([u, other]))[0, 1]) < 0.02
    probs = torch.tensor([0.2, 0.5, 0.3]).expand(30000, 3)
    allowed = torch.tensor([True, False, True]).expand(30000, 3)
    share = draw(probs, torch.ones_like(allowed), u).bincount() / 30000
    torch.testing.assert_close(share, probs[0], atol=0.01, rtol=0)
    share = draw(probs, allowed, u).bincount(minlength=3) / 30000
    torch.testing.assert_close(share, torch.tensor([0.4, 0.0, 0.6]), atol=0.01, rtol=0)


def test_min_rows_in_training_and_evaluation():
    samples = make_samples()
    model = make_model({**DPE, "min_rows": 18}, seed=3)
    for training in (True, False):
        decisions = model.train(training)(**collate(samples)).trace.decisions
        kept = [n for d in decisions for n in d.kept]
        assert min(kept) >= 12  # 16 rows have no option of 18, so the largest one is taken
        assert all(e == 0 for d in decisions for e in d.experts.tolist())
    reference = make_model({**DPE, "min_rows": "reference"}, seed=3)
    trace = reference(**collate(samples)).trace
    rows = trace.visual_rows
    assert any(n < 18 for n in rows[1])  # no bound in evaluation
    small = [b for b, n in enumerate(rows[0]) if n < 16]
    assert all(b not in d.samples for d in trace.decisions for b in small)
    drawn = make_model({"name": "random", "layers": [0, 1], "min_rows": "reference"}, seed=3)
    for training in (True, False):  # the release limits the gates alone
        decisions = drawn.train(training)(**collate(samples)).trace.decisions
        assert min(n for d in decisions for n in d.kept) < 16
        assert all(b not in d.samples for d in decisions for b in small)


def test_reference_eligibility_is_all_or_none():
    samples = make_samples([0, 4])  # the second's images have 2 and 12 cells
    options = {**DPE, "kernels": [[1, 1], [4, 4]]}
    assert make_model(options)(**collate(samples)).trace.decisions[0].samples == (0,)
    whole = make_model({**options, "eligibility": "reference"})
    assert whole(**collate(samples)).trace.decisions[0].samples == ()
    assert whole(**collate(samples[:1])).trace.decisions[0].samples == (0,)
    with_text = make_samples([0, 2])  # the second has no image, so fewer rows than any kernel
    assert make_model(options)(**collate(with_text)).trace.decisions[0].samples == (0,)
    assert whole(**collate(with_text)).trace.decisions[0].samples == ()
    # A sample of 14 rows is not pooled with min_rows=reference, but does not keep others from it.
    both = make_model({**DPE, "eligibility": "reference", "min_rows": "reference"})
    assert both(**collate(samples)).trace.decisions[0].samples == (0,)


def test_samples_without_image_are_never_routed():
    model = make_model(DPE)
    trace = model(**collate(make_samples([2]))).trace
    assert [d.samples for d in trace.decisions] == [(), ()]


def test_price_moves_evaluation_towards_fewer_rows():
    model = make_model(DPE, seed=3)
    batch = collate(make_samples())
    rows = {}
    for price in (-50.0, 0.0, 50.0):
        model.router.price.fill_(price)
        rows[price] = model(**batch).trace.visual_rows
    assert rows[-50.0] == [(16, 23, 0, 16, 14)] * 4  # the identity everywhere
    assert rows[50.0] == [(16, 23, 0, 16, 14), *[(4, 8, 0, 4, 5)] * 2, (1, 3, 0, 1, 2)]
    totals = [sum(map(sum, layers)) for layers in rows.values()]
    assert totals == sorted(totals, reverse=True)


def test_price_is_a_bias_of_the_gate():
    """What is chosen for its price is not scaled by the small chance it had without it."""
    model = make_model(DPE, seed=3)
    logits = {}
    for layer, gate in model.router.gates.items():
        gate.register_forward_hook(lambda *args, layer=layer: logits.update({layer: args[2]}))
    model.router.price.fill_(50.0)
    for decision in model(**collate(make_samples())).trace.decisions:
        wanted = logits[str(decision.layer)] / 10 - 50 * torch.tensor([1, 1 / 2, 1 / 4])
        torch.testing.assert_close(decision.probs, wanted.softmax(-1))
        assert (decision.probs.gather(1, decision.experts[:, None]) > 0.99).all()


@pytest.mark.parametrize("keep", [0.4, 0.8])
def test_random_meets_keep_in_expectation(keep):
    router = build("random", keep=keep)
    full = LLAVA.visual_macs([576] * 32)
    g = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(2000):
        grids, rows = ((24, 24),), []
        for layer in range(32):
            rows.append(grids[0][0] * grids[0][1])
            if layer in router.plan.layers:
                gate = router.plan.layers.index(layer)
                options = router.plan.options(gate, grids)
                chances = torch.tensor(router.chances[gate])
                chances = chances * torch.tensor([o is not None for o in options])
                grids = options[int(torch.multinomial(chances, 1, generator=g))]
        shares.append(LLAVA.visual_macs(rows) / full)
    assert np.mean(shares) == pytest.approx(keep, abs=0.02)


def test_static_takes_the_closest_kernels():
    router = build("static", keep=0.5)
    kernels = [k[0] for k in router.plan.kernels]
    best = router.plan.expected_macs([[1.0, 0.0]] * 3, ((24, 24),), LLAVA, "post")
    assert best / LLAVA.visual_macs([576] * 32) == pytest.approx(0.5, abs=0.06)
    assert len(kernels) == 3


def test_expected_macs_by_enumeration():
    plan = PoolingPlan((1, 3), (((1, 1), (2, 2)), ((1, 1), (1, 2), (2, 2))), min_rows=2)
    probs = [[0.3, 0.7], [0.2, 0.5, 0.3]]
    cost = TEXT.layer_macs
    # 4 x 4: after the first gate 16 or 4 rows; of 4 rows the 2 x 2 kernel would leave 1 < min_rows.
    from_16 = 0.2 * 4 * cost(16) + 0.5 * 4 * cost(8) + 0.3 * 4 * cost(4)
    from_4 = (0.2 * 4 * cost(4) + 0.5 * 4 * cost(2)) / 0.7
    expected = 2 * cost(16) + 0.3 * (2 * cost(16) + from_16) + 0.7 * (2 * cost(4) + from_4)
    assert plan.expected_macs(probs, ((4, 4),), TEXT, "post") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [7, 40]}, "layer 40, the decoder has layers 0 to 31"),
        ({"layers": [7, 7]}, "ascending"),
        ({"kernels": [[1, 1], [25, 2]]}, "grid is at most 24 x 24"),
        ({"kernels": [[0, 1]]}, "smaller kernel"),
        ({"kernels": [[[1, 1]], [[2, 2]]]}, "kernels for 2 layers"),
        ({"keep": 1.5}, "larger than 0 and at most 1"),
        ({"keep": 0.1}, "only 0.33 to 1.00"),
    ],
)
def test_check_names_each_problem(arguments, message):
    with torch.device("meta"):
        router = build("dpe", **arguments)
    assert any(message in p for p in router.check())


def test_a_valid_router_has_no_problem():
    assert build("dpe").check() == []


def test_reach_of_a_7b():
    low, high = build("dpe").reach()
    assert low == pytest.approx(0.334, abs=0.005)
    assert high == 1.0


def test_one_synchronisation_per_layer(monkeypatch):
    """Only the chosen experts travel to the host, counted as calls of tolist and item."""
    model = make_model(DPE, seed=3)
    calls = Counter()
    for name in ("tolist", "item"):
        original = getattr(torch.Tensor, name)

        def counted(self, original=original, name=name):
            calls[name] += 1
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    batch = collate(make_samples())
    model(**batch)
    dpe = sum(calls.values())
    calls.clear()
    model.router = routers.build("none", text=model.router.text, grid=model.router.grid)
    model(**batch)
    assert dpe - sum(calls.values()) == 2


@torch.no_grad()
def test_a_router_that_is_given_brings_its_own_numbering():
    """Pooled rows start with gaps in their positions under `keep`, and without under `renumber`."""
    model = make_model({"name": "none"}, {"name": "pooled"}, seed=3)
    batch, seen = collate(make_samples()), {}
    for positions in ("keep", "renumber"):
        given = routers.build("vtw", k=2, positions=positions, **model.router.sizes)
        seen[positions] = model(**batch, router=given).logits
        same = make_model({"name": "vtw", "k": 2, "positions": positions}, {"name": "pooled"}, 3)
        assert torch.equal(same(**batch).logits, seen[positions])
    assert not torch.allclose(seen["keep"], seen["renumber"])
