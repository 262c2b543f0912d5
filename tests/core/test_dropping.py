"""Selections of the dropping methods against plain loops over one sample on the stock model."""

import pytest
import torch

from dpn import routers
from dpn.cost import TextShape, solve_for_keep
from dpn.routers.aim import merged_rows
from dpn.routers.sparsevlm import density_peaks, like_depths
from dpn.routers.vtw import VTWRouter

from .conftest import collate, make_model, make_samples
from .eager import RULES, Eager, clusters_of
from .test_router_contracts import config_of, without_labels

LLAVA = TextShape(32, 4096, 4096, 11008)
IMAGES = [0, 3, 4]  # samples whose images are all in the instruction


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", [3, 4])
@torch.no_grad()
def test_a_method_equals_a_plain_loop(name, seed):
    rule, arguments, positions = RULES[name]
    model = make_model({"name": name, **arguments}, seed=seed)
    samples = make_samples(IMAGES, seed=seed)
    out = model(**collate(samples))
    eager = Eager(model, positions)
    for b, (ids, labels, images) in enumerate(samples):
        end = int((labels != -100).nonzero()[0])
        eager.start(ids, images)
        entered = {column: len(image) for column, image in eager.images().items()}
        for depth in range(4):
            rule(eager, depth, entered, end)
            assert sum(map(len, eager.images().values())) == out.trace.visual_rows[depth][b]
            eager.before = eager.run(depth)
            eager.hidden = eager.before[0]
        for column, logits in enumerate(eager.logits()):
            if logits is not None:
                torch.testing.assert_close(out.logits[b, column], logits, atol=2e-5, rtol=1e-4)


def test_aim_ranks_rows_independently_of_the_answer():
    model = make_model({"name": "aim", "merge": 1.0, "first": 0, "steps": 3}, seed=3)
    for seed in range(6):
        ids, labels, images = make_samples([3], seed=seed)[0]
        end = int((labels != -100).nonzero()[0])
        whole = model(**collate([(ids, labels, images)])).logits[:, :end]
        prompt = (ids[:end], labels[:end], images)
        torch.testing.assert_close(model(**collate([prompt])).logits, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "clusters"), [(1, 1), (9, 2), (30, 4)])
def test_density_peaks_equal_the_naive_algorithm(rows, clusters):
    x = torch.randn(rows, 5)
    found = density_peaks(x, clusters).tolist()
    groups = [{i for i in range(rows) if found[i] == c} for c in range(clusters)]
    assert sorted(map(sorted, groups)) == sorted(map(sorted, clusters_of(x, clusters)))


@pytest.mark.parametrize(
    ("name", "arguments", "cut"),
    [
        ("fastv", {"k": 2, "ratio": 0.5}, 0.474),
        ("fastv", {"k": 2, "ratio": 0.75}, 0.707),
        ("pyramid_drop", {}, 0.534),
        ("vtw", {}, 0.53125),
    ],
)
def test_shares_of_the_published_settings(name, arguments, cut):
    router = routers.build(name, **arguments, text=LLAVA, grid=(24, 24))
    assert 1 - router.share(router.strength) == pytest.approx(cut, abs=6e-4)
    assert router.check() == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fastv", {"k": 0}, "router.k=0 must be at least 1"),
        ("fastv", {"k": 33}, "from 0 to 32"),
        ("fastv", {"keep": 0.05}, "only 0.06 to 1.00"),
        ("vtw", {"k": 40}, "from 0 to 32"),
        ("sparsevlm", {"counts": [0.5]}, "gives 1 shares for router.layers=[2, 6, 15]"),
        ("sparsevlm", {"counts": [0.5, 0.0, 0.1]}, "larger than 0 and at most 1"),
        ("aim", {"keep": 0.9}, "only 0.00 to 0.6"),
        ("pyramid_drop", {"layers": [8, 8]}, "without repeats"),
        ("pyramid_drop", {"layers": [16, 8]}, "must be ascending"),
    ],
)
def test_check_names_each_problem(name, arguments, message):
    found = routers.build(name, **arguments, text=LLAVA, grid=(24, 24)).check()
    assert any(message in problem for problem in found)


def test_the_released_counts():
    qwen = TextShape(28, 3584, 512, 18944)
    aim = routers.build("aim", text=qwen, grid=(24, 24))
    assert aim.rows(aim.strength) == [144] * 15 + [126, 108, 90, 72, 54, 36, 18] + [0] * 6
    config = {**config_of("sparsevlm"), "recycle": False}
    sparse = routers.build(**config, text=LLAVA, grid=(24, 24))
    assert sparse.rows(sparse.strength) == [576] * 3 + [300] * 4 + [200] * 9 + [110] * 16


@pytest.mark.parametrize("entered", [2, 3, 64, 576, 729, 730, 731])
def test_aim_merges_as_many_rows_as_the_release(entered):
    """`bipartite_soft_matching_merge` with r = n // 2, then r = n // 4, each at most half."""
    left = entered
    for r in (entered // 2, entered // 4):
        left -= min(r, left // 2)
    assert merged_rows(0.25, entered) == left
    assert {576: 144, 729: 183}.get(entered, left) == left
    assert [merged_rows(share, entered) for share in (0.0, 1.0)][1] == entered
    every = [merged_rows(n / 1000, entered) for n in range(1001)]
    assert every == sorted(every)


def test_the_layers_of_sparsevlm_are_those_released():
    assert [like_depths(n) for n in (32, 8, 4)] == [[2, 6, 15], [0, 1, 3], [0, 1, 2]]


def test_a_chain_runs_its_members_in_order():
    early, late = {"name": "fastv", "k": 1, "ratio": 0.3}, {"name": "fastv", "k": 3, "ratio": 0.6}
    samples = collate(make_samples(IMAGES))
    both = make_model({"name": "chain", "routers": [early, late]}, seed=3)(**samples)
    rows = both.trace.visual_rows
    assert rows[0][0] == 16
    assert rows[1] == rows[2] == make_model(early, seed=3)(**samples).trace.visual_rows[3]
    assert rows[3] == make_model(late, seed=3)(**samples).trace.visual_rows[3]
    alone = make_model({"name": "chain", "routers": [early]}, seed=3)(**samples).logits
    assert torch.equal(alone, make_model(early, seed=3)(**samples).logits)
    assert torch.equal(
        make_model({"name": "chain", "routers": []}, seed=3)(**samples).logits,
        make_model(seed=3)(**samples).logits,
    )


def test_two_routers_that_read_and_drop_at_one_layer_are_refused():
    chain = {"name": "chain", "routers": [{"name": "fastv", "k": 1}, {"name": "fastv", "k": 1}]}
    with pytest.raises(ValueError, match="let them act after different layers"):
        make_model(chain)(**collate(make_samples()))


@pytest.mark.parametrize(
    ("members", "keep", "message"),
    [
        (
            [{"name": "fastv"}, {"name": "pyramid_drop"}],
            None,
            "FastVRouter keep, PyramidDropRouter",
        ),
        ([{"name": "fastv", "k": 50}], None, "router.routers[0]: The router drops rows before"),
        ([{"name": "dpe", "keep": 0.5}], None, "which a chain does not support"),
        ([{"name": "fastv"}], 0.5, "router.keep=0.5 has no meaning for a chain"),
    ],
)
def test_check_of_a_chain(members, keep, message):
    chain = routers.build("chain", routers=members, keep=keep, text=LLAVA, grid=(24, 24))
    assert any(message in problem for problem in chain.check())


def test_solve_for_keep_with_rising_and_falling_shares():
    assert solve_for_keep(0.25, lambda x: x * x, 0, 1) == pytest.approx(0.5)
    assert solve_for_keep(0.25, lambda x: 1 - x, 0, 1) == pytest.approx(0.75)
    assert solve_for_keep(2.0, lambda x: x, 0, 1) == pytest.approx(1.0)


@torch.inference_mode()
def test_the_search_of_vtw_returns_the_first_sufficient_layer():
    model = make_model({"name": "static"}, seed=3)
    batches = [without_labels(make_samples([0, 3], seed=s)) for s in range(2)]
    own = model.router

    def divergence(k):
        each = []
        for batch in batches:
            model.router = routers.build("vtw", k=k, text=own.text, grid=own.grid)
            whole, part = model(**batch, compress=False).logits, model(**batch).logits
            for b, mask in enumerate(batch["attention_mask"]):
                p, q = (x[b, int(mask.sum()) - 1].softmax(-1) for x in (part, whole))
                each.append(float((p * (p / q).log()).sum()))
        return sum(each) / len(each)

    found = [divergence(k) for k in range(4)]
    model.router = own
    for eta in (min(found[1:]) * 0.99, sorted(found[1:])[1] * 1.01, max(found) * 1.01):
        good = [k for k in range(1, 4) if found[k] <= eta]
        found_k = VTWRouter.search(model, batches, eta=eta, first=1)
        assert found_k == {"k": good[0] if good else 4}


@torch.no_grad()
@pytest.mark.parametrize(("name", "settings"), [("fastv", {"k": 1}), ("sparsevlm", {})])
def test_shares_are_relative_to_the_rows_that_a_projector_leaves(name, settings):
    pooled = {"name": "pooled", "kernel": [2, 2]}
    alone = make_model({"name": "none"}, projector=pooled)
    both = make_model({"name": name, **settings}, projector=pooled)
    batch = collate(make_samples([0, 1]))
    (first, second), left = alone(**batch).trace.visual_rows[0], both(**batch).trace.visual_rows
    assert both(**batch).trace.base_rows[0] == 4 * first
    assert left[0] == (first, second)
    assert 0 < left[-1][0] < first
    if name == "fastv":
        assert left[1] == (first // 2, second // 2)
