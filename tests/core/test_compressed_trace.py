"""`fast.dpn.trace`: rows, visual MACs, shares, FLOPs and survivors of a prefill."""

import math

import numpy as np
import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dpn
from dpn import routers
from dpn.common.errors import SettingError
from dpn.cost import TextShape
from dpn.families import family_of
from tests.core._vlm_routers import (
    FAMILIES,
    ROUTERS,
    SCORES,
    Sample,
    build,
    language,
    sample,
    shared,
)

FEW = ("llava_next", "qwen3_vl", "smolvlm")
#: Routers under which visual rows attend to the text before them and to some rows of their tile.
LOCAL = ("neighbor_attention", "redundancy_lens", "yopo")
#: Older releases multiply positions and frequencies as matrices, which is not counted.
OLDER = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18)
WITH_KEEP = [n for n in ROUTERS if routers.resolve(n).meets_keep != "never"]


def counted(call, parts):
    """Return the FLOPs that torch counts in some modules, with attention as matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call()
    found = counter.get_flop_counts()
    return sum(sum(found[part].values()) for part in parts)


def flops_equal_the_counter(name, router):
    model, given = shared(name), sample(name)
    fast = dpn.compress(model, router, attention="segments", **ROUTERS[router])
    top, text = type(model).__name__, family_of(model.config).text
    parts = (f"{top}.model.{text}", f"{top}.lm_head")
    count = counted(lambda: fast(**given.inputs, logits_to_keep=1), parts)
    (formula,) = fast.dpn.trace.prefill_flops
    padded = router in LOCAL and language(model) is not getattr(model.model, "language_model", None)
    if routers.resolve(router).uncounted_flops:
        assert 0.7 * count < formula < count
    elif padded:  # each tile has more text before it than the last one
        assert 0.97 * count < formula < count
    elif OLDER:
        assert formula == pytest.approx(count, rel=5e-3)
    else:
        assert formula == count


@pytest.mark.parametrize(
    ("name", "router"), [(FEW[i % len(FEW)], router) for i, router in enumerate(ROUTERS)]
)
def test_flops_equal_the_counter(name, router):
    flops_equal_the_counter(name, router)


@pytest.mark.slow
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_flops_of_every_family_equal_the_counter(name, router):
    flops_equal_the_counter(name, router)


def text_of_4b(layers):
    """Sizes of Qwen3-VL-4B: 32 heads of 128 units are wider than the model."""
    return transformers.Qwen3VLConfig(
        text_config={
            **{"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": layers},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
            "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20]},
        }
    ).text_config


@pytest.mark.parametrize("name", [*FEW, "qwen3_vl_4b"])
def test_visual_macs_equal_the_counter_without_text(name):
    """Visual MACs are the products of a text model that reads visual rows alone."""
    rows = 23
    if name == "qwen3_vl_4b":
        with torch.device("meta"):
            text = transformers.Qwen3VLTextModel(text_of_4b(2)).bfloat16()
            hidden = torch.empty(1, rows, 2560, dtype=torch.bfloat16)
    else:
        text, hidden = language(shared(name)), torch.randn(1, rows, 32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for layer in text.layers:
            size = layer.self_attn.head_dim
            rotary = (hidden.new_ones(1, rows, size), hidden.new_zeros(1, rows, size))
            hidden = layer(hidden, position_embeddings=rotary)
    shape = TextShape.from_config(text.config)
    assert 2 * shape.visual_macs([rows] * len(text.layers)) == counter.get_total_flops()
    assert shape.query_size == text.layers[0].self_attn.q_proj.out_features


def test_a_checkpoint_with_wide_queries_has_the_macs_of_its_layers():
    shape, n = TextShape.from_config(text_of_4b(36)), 1024
    projections = n * 2560 * (2 * 4096 + 2 * 1024)
    assert shape.layer_macs(n) == projections + 2 * n * n * 4096 + 3 * n * 2560 * 9728
    # Text heads that are narrower or as wide: the papers' formula.
    usual = TextShape(32, 4096, 4096, 11008)
    assert usual.layer_macs(n) == 4 * n * 4096**2 + 2 * n * n * 4096 + 3 * n * 4096 * 11008


def reference_sample(name):
    """Return an image whose blocks are those for which `keep` is met."""
    kinds = {"llava_": (112, 112), "qwen": (64, 64), "intern": 13, "smol": 13, "idefics": 13}
    size = next((size for start, size in kinds.items() if name.startswith(start)), None)
    given = sample(name, size=size)
    blocks = family_of(shared(name).config).reference(shared(name).config)
    assert [(grid, tail) for _, grid, tail in given.blocks] == [tuple(b) for b in blocks]
    return given


def settings(router, layers):
    """Default settings of a router, with scores of heads where they are needed."""
    if router not in ("head_pruning", "yopo"):
        return {}
    # Scores in equal steps, so that a threshold can prune any number of heads.
    scores = torch.linspace(0.001, 0.069, 2 * layers)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    return {"scores": scores[order].view(layers, 2).tolist()}


@torch.no_grad()
def keep_is_met(name, router, keep, layers=8):
    model, given = build(name, num_hidden_layers=layers), reference_sample(name)
    options = settings(router, layers)
    low, high = dpn.compress(model, router, **options).dpn.router.reach()
    if not low - 5e-3 <= keep <= high + 5e-3:
        with pytest.raises(SettingError, match="cannot be reached"):
            dpn.compress(model, router, keep=keep, **options)
        return
    fast = dpn.compress(model, router, keep=keep, **options)
    fast(**given.inputs)
    (share,), built = fast.dpn.trace.share, fast.dpn.router
    if hasattr(built, "strength"):  # what was solved for is what is computed
        assert share == pytest.approx(built.share(built.strength), rel=1e-9)
    assert low - 1e-9 <= share <= high + 1e-9
    if router == "random":  # one draw of the kernels whose expected share is kept
        grids = [block.grid for block in built.blocks]
        expected = built.plan.expected_macs(
            built.chances, tuple(grids), built.text, built.where, built.tails
        )
        share = expected / built.text.full_macs(sum(h * w for h, w in grids))
    # Steps of one layer, of the few kernels there are, or of the rows that a tile of four has.
    tiled = len(given.blocks) > 2 and router in ("aim", "sparsevlm")
    step = {"static": 0.1, "random": 0.0}.get(router, 0.25 if tiled else 0.5 / layers)
    assert share == pytest.approx(keep, abs=step + 0.01)


@pytest.mark.parametrize("router", WITH_KEEP)
@pytest.mark.parametrize("name", ["llava_next", pytest.param("internvl", marks=pytest.mark.slow)])
def test_keep_is_met_for_the_reference_image(name, router):
    keep_is_met(name, router, 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.3, 0.75])
@pytest.mark.parametrize("router", WITH_KEEP)
@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_vl", "qwen3_vl", "smolvlm"])
def test_keep_is_met_for_every_reference_image(name, router, keep):
    keep_is_met(name, router, keep)


@torch.no_grad()
@pytest.mark.parametrize(
    "layers", [28, *(pytest.param(layers, marks=pytest.mark.slow) for layers in (36, 64))]
)
def test_default_layers_scale_with_the_depth(layers):
    model, given = build("llava_next", num_hidden_layers=layers), sample("llava_next")
    cuts = {}
    for router in ("pyramid_drop", "static", "vtw", "sparsevlm", "layer_drop", "aim", "fastv"):
        fast = dpn.compress(model, router)
        fast(**given.inputs)
        rows = [rows for (rows,) in fast.dpn.trace.visual_rows]
        cuts[router] = [n for n in range(1, layers) if rows[n] < rows[n - 1]]
    quarters = [layers // 4, layers // 2, layers * 3 // 4]
    assert cuts["pyramid_drop"] == cuts["static"] == quarters
    assert cuts["vtw"] == [round(layers * 15 / 32)]
    assert cuts["layer_drop"] == [layers // 2]
    assert cuts["sparsevlm"] == [round(depth * layers / 32) for depth in (3, 7, 16)]
    assert cuts["aim"][0] > layers // 2
    assert cuts["fastv"] == [2]


@pytest.mark.parametrize(
    "given",
    [
        {"router": "static", "layers": [7, 40]},
        {"router": "pyramid_drop", "layers": [8, 40]},
        {"router": "sparsevlm", "layers": [2, 6, 40]},
        {"router": "vtw", "k": 40},
        {"router": "fastv", "k": 40},
        {"router": "aim", "first": 40},
        {"router": "neighbor_attention", "layers": [40]},
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(given):
    with pytest.raises(SettingError, match=r"layer|parameter is 40"):
        dpn.compress(shared("llava"), **given)


@torch.no_grad()
def test_survivors_of_rows_that_are_dropped_pooled_and_merged():
    model, given = shared("llava_next"), sample("llava_next")

    def survivors(router):
        fast = dpn.compress(model, router, **ROUTERS[router])
        fast(**given.inputs)
        (image,) = fast.dpn.trace.survivors
        assert [cells.shape for cells in image] == [(4, 4), (8, 5)]
        return sum(int(cells.sum()) for cells in image), fast.dpn.trace

    assert survivors("none")[0] == survivors("static")[0] == 56  # pooled rows stand for all cells
    count, trace = survivors("fastv")
    assert count == trace.visual_rows[-1][0] == round(56 * 0.6)
    assert survivors("vtw")[0] == 0
    count, trace = survivors("sparsevlm")
    assert count > trace.visual_rows[-1][0]  # a merged row stands for several cells


@torch.no_grad()
def test_a_sample_without_an_image_has_no_share():
    model = shared("llava")
    fast = dpn.compress(model, "fastv")
    ids = torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(fast(input_ids=ids).logits, model(input_ids=ids).logits)
    (share,) = fast.dpn.trace.share
    assert math.isnan(share)
    assert fast.dpn.trace.visual_macs == [0]
    assert fast.dpn.trace.survivors == []
    assert repr(fast.dpn.trace).startswith("sample 0: 0 visual rows, 0.000")


@torch.no_grad()
def test_the_record_is_that_of_the_last_prefill():
    fast, given = dpn.compress(shared("llava"), "fastv"), sample("llava")
    assert fast.dpn.trace is None
    fast.generate(**given.inputs, max_new_tokens=3, do_sample=False)
    first = fast.dpn.trace
    assert first.columns == (given.inputs["input_ids"].shape[1],)
    fast(**given.inputs)
    assert fast.dpn.trace is not first
    assert fast.dpn.trace.prefill_flops == first.prefill_flops
    assert repr(first).startswith("sample 0: 16 visual rows, 8 visual rows from layer 2 on, 0.")


@torch.no_grad()
def test_pairs_of_several_spans_are_counted_span_by_span():
    """Pairs that a radius of one cell computes, whole lines of each tile, and those with text."""
    given: Sample = sample("smolvlm")
    fast = dpn.compress(shared("smolvlm"), "neighbor_attention", radius=0)
    fast(**given.inputs)
    work = fast.dpn.trace.passed.work[0][0]
    assert work.rows == 16
    assert work.pairs == 4 * (2 * 2 * 1 * 2)
    before = [start - 4 * number for number, (start, _, _) in enumerate(given.blocks)]
    assert work.text_pairs == 4 * sum(before)
    assert np.isclose(fast.dpn.trace.visual_macs[0], macs(work))


def macs(work):
    """Visual MACs of four layers of 32 units, four heads of 8 and two of keys, FFN of 48."""
    linear = 2 * work.rows * 32 * 32 + 2 * work.rows * 32 * 16 + 3 * work.rows * 32 * 48
    return 4 * (linear + 2 * work.pairs * 32)


def test_scores_of_heads_belong_to_every_layer():
    with pytest.raises(SettingError, match="has 3 layers of 2 heads"):
        dpn.compress(shared("llava"), "head_pruning", scores=SCORES[:3])
