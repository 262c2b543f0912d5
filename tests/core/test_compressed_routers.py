"""Every router without weights on stock Hugging Face VLMs, against plain loops and masks."""

import numpy as np
import pytest
import torch

import dpn
from dpn import routers
from dpn.common.errors import SettingError
from dpn.cost import TextShape
from dpn.families.idefics3 import Idefics3
from dpn.tokens import Grid
from tests.core._vlm_naive import naive_logits
from tests.core._vlm_routers import FAMILIES, ROUTERS, answered, batch, sample, shared

#: A newline column; three rotary axes and DeepStack; tiles between text; tiles in one run.
CHECKED = ("llava_next", "qwen3_vl", "smolvlm", "internvl")


def test_every_router_without_weights_is_tried():
    free = [name for name in routers.names() if not routers.resolve(name).own_weights]
    assert sorted(free) == sorted(ROUTERS)


def generated(model, inputs, tokens=4):
    """Return the new tokens, all of them words, and the logits of each."""
    out = model.generate(
        **inputs,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=list(range(100, 128)),
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], out.logits


@torch.no_grad()
def check(name, router, seed=0, positions=None, **further):
    """Compare prompt and answer with the naive loop: in one pass with labels, and in decoding."""
    model, given = shared(name), sample(name, seed)
    settings = {**ROUTERS[router], **further} | ({"positions": positions} if positions else {})
    fast = dpn.compress(model, router, **settings)
    end = given.inputs["input_ids"].shape[1]
    answer, steps = generated(fast, given.inputs)
    inputs = answered(given.inputs, answer[:, :3])
    whole = fast(**inputs).logits[0]
    expected, entered = naive_logits(
        model,
        router,
        inputs,
        given.blocks,
        end,
        positions or "keep",
        fast.dpn.trace.passed.decisions,
        **further,
    )
    assert [rows for (rows,) in fast.dpn.trace.visual_rows] == entered
    for column, logits in expected.items():
        torch.testing.assert_close(whole[column], logits, atol=2e-5, rtol=1e-4)
    for step, logits in enumerate(steps):
        torch.testing.assert_close(logits[0], expected[end - 1 + step], atol=2e-5, rtol=1e-4)
    stock = model(**given.inputs).logits[0, -1]
    return float((stock - expected[end - 1]).abs().max())


#: Each router on one family; the whole table is slow.
FEW = [(CHECKED[i % len(CHECKED)], name) for i, name in enumerate(ROUTERS)]


@pytest.mark.parametrize(("name", "router"), FEW)
def test_a_router_equals_a_plain_loop(name, router):
    moved = check(name, router)
    assert (moved > 1e-3) == (router not in ("none", "random")) or router == "random"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_router_equals_a_plain_loop_on_every_family(name, router, seed):
    check(name, router, seed)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "router"),
    [
        *[("llava_next", "static"), ("internvl", "aim")],
        *[("smolvlm", "pyramid_drop"), ("smolvlm", "sparsevlm")],
    ],
)
def test_rows_can_be_renumbered(name, router):
    check(name, router, positions="renumber")


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl"])
def test_pooling_by_the_mean_and_before_a_layer(name):
    check(name, "static", reduce="avg")
    model, given = shared(name), sample(name)
    one = dpn.compress(model, "static", layers=[1], kernels=[1, 2], where="pre")(**given.inputs)
    two = dpn.compress(model, "static", layers=[0], kernels=[1, 2], where="post")(**given.inputs)
    assert torch.equal(one.logits, two.logits)


@torch.no_grad()
@pytest.mark.parametrize("name", CHECKED)
def test_a_kernel_of_one_cell_changes_nothing(name):
    model, given = shared(name), sample(name)
    fast = dpn.compress(model, "static", layers=[0, 2], kernels=[1, 1])
    assert torch.equal(fast(**given.inputs).logits, model(**given.inputs).logits)
    assert fast.dpn.trace.share == [1.0]


@torch.no_grad()
def test_a_newline_column_is_pooled_along_the_height_only():
    model, given = shared("llava_next"), sample("llava_next")
    fast = dpn.compress(model, "static", layers=[0], kernels=[2, 2], where="pre")
    fast(**given.inputs)
    (overview, lines) = fast.dpn.trace.survivors[0]
    assert overview.shape == (4, 4)
    assert lines.shape == (8, 5)
    assert fast.dpn.trace.visual_rows[0] == (2 * 2 + 4 * (2 + 1),)


BATCHES = {
    "llava_next": ((100, 60), (112, 112), (60, 100)),
    "qwen3_vl": ((8, 6), (4, 12), (10, 4)),
    "smolvlm": (4, 2, 3),
    "internvl": (3, 1, 5),
}


@torch.no_grad()
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("router", [pytest.param(r, marks=pytest.mark.slow) for r in ROUTERS])
def test_a_batch_equals_its_samples(name, router):
    batch_equals_samples(name, router)


@torch.no_grad()
@pytest.mark.parametrize(("name", "router"), [("llava_next", "static"), ("smolvlm", "fastv")])
def test_a_batch_equals_its_samples_on_a_few(name, router):
    batch_equals_samples(name, router)


def batch_equals_samples(name, router):
    model = shared(name)
    fast = dpn.compress(model, router, **ROUTERS[router])
    samples = [
        sample(name, seed, size, after=4 + seed) for seed, size in enumerate(BATCHES[name], start=1)
    ]
    tokens, steps = generated(fast, batch(samples))
    trace = fast.dpn.trace
    for b, one in enumerate(samples):
        alone, its = generated(fast, one.inputs)
        assert torch.equal(alone[0], tokens[b])
        assert [rows for (rows,) in fast.dpn.trace.visual_rows] == [r[b] for r in trace.visual_rows]
        assert fast.dpn.trace.visual_macs == trace.visual_macs[b : b + 1]
        assert fast.dpn.trace.prefill_flops == trace.prefill_flops[b : b + 1]
        for cell, other in zip(fast.dpn.trace.survivors[0], trace.survivors[b], strict=True):
            assert (cell == other).all()
        for step, logits in zip(its, steps, strict=True):
            torch.testing.assert_close(step[0], logits[b], atol=3e-5, rtol=1e-4)


def test_tiles_of_an_image_compete_with_each_other():
    """Rows of each image are counted over its tiles: 40 % of 16, not four times 40 % of 4."""
    model, given = shared("smolvlm"), sample("smolvlm")
    fast = dpn.compress(model, "fastv", k=1, ratio=0.4)
    fast(**given.inputs)
    (tiles,) = fast.dpn.trace.survivors
    assert len(tiles) == 4
    assert sum(tile.sum() for tile in tiles) == 10
    assert len({int(tile.sum()) for tile in tiles}) > 1


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ("abO", [1, 0, 0]),
        ("O", [1]),
        ("OO", [1, 1]),
        ("abOabcO", [1, 0, 0, 1, 0, 0, 0]),
        ("OabOO", [1, 1, 0, 0, 1]),
        ("aaa", [1, 1, 1]),  # hand-made prompts that do not name the places
        ("", []),
    ],
)
def test_the_overview_is_the_last_tile_of_an_image(places, expected):
    ids, runs = [1], []
    for place in places:
        ids += [ord(place), 0, 0, 7]
        runs.append(len(ids) - 3)
    found = Idefics3().begins(np.array(ids), np.array(runs, dtype=int))
    assert found.astype(int).tolist() == expected


@torch.no_grad()
def test_members_of_a_chain_keep_positions_whatever_their_defaults_are():
    model, given = shared("qwen3_vl"), sample("qwen3_vl")
    members = [{"name": "fastv", "k": 1}, {"name": "static", "layers": [2], "kernels": [2, 2]}]
    fast = dpn.compress(model, "chain", routers=members)
    assert fast.dpn.numbering == "keep"
    fast(**given.inputs)
    assert [rows for (rows,) in fast.dpn.trace.visual_rows] == [12, 6, 6, 2]
    with pytest.raises(SettingError, match=r"renumber.*positions of three axes"):
        dpn.compress(model, "chain", routers=[{**m, "positions": "renumber"} for m in members])
    with pytest.raises(SettingError, match="number rows differently"):
        dpn.compress(model, "chain", routers=[{**members[0], "positions": "renumber"}, members[1]])


def test_routers_with_weights_are_refused_in_a_chain_too():
    for router in ("dyvte", {"name": "chain", "routers": [{"name": "fastv"}, {"name": "dyvte"}]}):
        with pytest.raises(SettingError, match="router=dyvte has weights that must be trained"):
            dpn.compress(shared("llava"), router)


@pytest.mark.parametrize("router", [7, {}, {"name": "chain", "routers": "fastv"}])
def test_what_is_no_router_is_refused(router):
    with pytest.raises((SettingError, TypeError), match="must be the name of a router"):
        dpn.compress(shared("llava"), router)


@torch.no_grad()
def test_a_placeholder_that_was_generated_is_text_as_in_the_stock_model():
    model, given = shared("llava"), sample("llava")
    fast = dpn.compress(model, "none")
    whole, stock = fast(**given.inputs), model(**given.inputs)
    token = torch.tensor([[100]])
    found = fast(input_ids=token, past_key_values=whole.past_key_values)
    expected = model(input_ids=token, past_key_values=stock.past_key_values)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(SettingError, match="image cannot be appended to a filled cache"):
        fast(**given.inputs, past_key_values=whole.past_key_values)


class OneGrid(routers.Router):
    """A router by others, whose constructor names what the code gives."""

    def __init__(self, k: int = 1, *, text: TextShape, grid: Grid):
        super().__init__(text=text, grid=grid)


@torch.no_grad()
def test_a_router_that_knows_one_grid_gets_the_largest(monkeypatch):
    resolve = routers._registry.resolve
    of_others = {"one_grid": OneGrid}
    for owner in (routers, routers._registry):
        monkeypatch.setattr(owner, "resolve", lambda name: of_others.get(name) or resolve(name))
    model, given = shared("llava_next"), sample("llava_next")
    fast = dpn.compress(model, "one_grid")
    assert fast.dpn.router.grid == (8, 9)
    assert torch.equal(fast(**given.inputs).logits, model(**given.inputs).logits)
    dpn.compress(model, "chain", routers=[{"name": "one_grid"}, {"name": "static"}])
