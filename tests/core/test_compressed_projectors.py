"""Projectors before layer 0 of stock vision-language models, against naive rules on the stock model
whose masks hide the columns of dropped and merged rows.
"""

import numpy as np
import pytest
import torch

import dpn
from dpn.common.errors import SettingError
from tests.vlm_batches import fresh, is_text, shown
from tests.vlms import Clip, Picture, batch, build, model

from . import naive_projectors as naive
from .conftest import few
from .stock_rows import PROMPTS, expected_rows, in_place_of, sharp

NAMES = list(naive.MODULES)
TOKENS = ("pooled", "random", "divprune")
LOSSLESS = ("pooled", "random", "divprune", "visionzip", "mlp")
METHODS = {
    "pooled": {"kernel": [2, 2], "reduce": "avg"},
    "divprune": {"keep": 0.4},
    "visionzip": {"keep": 0.6},
    "prumerge": {"keep": 0.4, "neighbours": 2},
}
OPTIONS = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
    "bad_words_ids": [[100], [101]],
}


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", few(NAMES))
def test_method_is_its_naive_rule_on_the_stock_model(name, method):
    vlm, settings = sharp(name), METHODS[method]
    inputs = batch(vlm, PROMPTS)
    small = dpn.compress(vlm, projector=method, **settings)
    got = small(**fresh(inputs)).logits
    made = small.generate(**fresh(inputs), **OPTIONS)
    record = small.dpn.trace
    rows = expected_rows(name, vlm, inputs, record.spans, method, settings)
    plain = vlm(**fresh(inputs)).logits
    with in_place_of(vlm, rows, inputs):
        wanted = vlm(**fresh(inputs)).logits
        stock = vlm.generate(**fresh(inputs), **OPTIONS)
    text = is_text(inputs)
    torch.testing.assert_close(got[text], wanted[text], atol=2e-5, rtol=1e-4)
    assert torch.equal(made.sequences, stock.sequences)
    for ours, theirs in zip(made.logits, stock.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert (plain[0, -1] - got[0, -1]).abs().max() > 1e-3  # the rows matter
    counts = [sum(sample == b for sample, *_ in rows) for b in range(3)]
    assert list(record.visual_rows[0]) == counts
    assert counts[2] == 0
    stock = [int((shown(inputs) & ~text)[b].sum()) for b in range(3)]
    assert list(record.passed.base_rows) == stock
    macs = [n and record.visual_macs[0] for n in counts[:1]]
    assert record.share[0] == pytest.approx(macs[0] / _macs(small, stock[0]))


def _macs(small, rows):
    text = dpn.compress(dpn.restore(small)).dpn.router.text
    return text.num_layers * text.layer_macs(rows)


@torch.no_grad()
@pytest.mark.parametrize("name", few(NAMES))
def test_random_drops_what_survivors_tell(name):
    vlm = model(name)
    inputs = batch(vlm, PROMPTS)
    small = dpn.compress(vlm, projector="random", keep=0.4)
    got = small(**fresh(inputs)).logits
    record = small.dpn.trace
    marks = [cells.flatten() for image in record.survivors for cells in image]
    every = expected_rows(name, vlm, inputs, record.spans, "each_token", {})
    kept = [row for row, stays in zip(every, np.concatenate(marks), strict=True) if stays]
    with in_place_of(vlm, kept, inputs):
        wanted = vlm(**fresh(inputs)).logits
    text = is_text(inputs)
    torch.testing.assert_close(got[text], wanted[text], atol=2e-5, rtol=1e-4)
    sizes = [sum(cells.size for cells in image) for image in record.survivors]
    assert len(kept) == sum(round(0.4 * n) for n in sizes) == sum(record.visual_rows[0])


@torch.no_grad()
@pytest.mark.parametrize("method", LOSSLESS)
@pytest.mark.parametrize("name", few(NAMES))
def test_all_tokens_are_the_stock_model(name, method):
    vlm = model(name)
    inputs = batch(vlm, PROMPTS)
    small = dpn.compress(vlm, projector=method, keep=1.0)
    same = small(**fresh(inputs)).logits[is_text(inputs)]
    torch.testing.assert_close(same, vlm(**fresh(inputs)).logits[is_text(inputs)])
    assert small.dpn.trace.share[:2] == [1.0, 1.0]
    assert all(cells.all() for image in small.dpn.trace.survivors for cells in image)


@torch.no_grad()
@pytest.mark.parametrize("method", ["pooled", "random", "prumerge_plus", "visionzip"])
@pytest.mark.parametrize("name", few(NAMES))
def test_samples_do_not_depend_on_their_batch(name, method):
    vlm = sharp(name)
    small = dpn.compress(vlm, projector=method, keep=0.5)
    together = batch(vlm, [PROMPTS[0], [1, 5, Picture(56, 100), 7]])
    logits = small(**fresh(together)).logits
    rows = small.dpn.trace.visual_rows[0]
    for i, prompt in enumerate([PROMPTS[0], [1, 5, Picture(56, 100), 7]]):
        alone = batch(vlm, [prompt], seed=i)
        got = small(**fresh(alone)).logits[0][is_text(alone)[0]]
        torch.testing.assert_close(got, logits[i][is_text(together)[i]], atol=2e-5, rtol=1e-4)
        assert small.dpn.trace.visual_rows[0] == (rows[i],)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3"])
def test_text_alone_after_images(name):
    vlm = model(name)
    for method in ("visionzip", "random", "pooled"):
        small = dpn.compress(vlm, projector=method, keep=0.5)
        small(**batch(vlm, PROMPTS))
        inputs = batch(vlm, [[1, 5, 6], [1, 7]])
        got = small(**fresh(inputs)).logits[is_text(inputs)]
        torch.testing.assert_close(got, vlm(**fresh(inputs)).logits[is_text(inputs)])
        assert small.dpn.trace.visual_rows[0] == (0, 0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "smolvlm"])
def test_beams_choose_what_greedy_search_chooses(name):
    vlm = sharp(name)
    small = dpn.compress(vlm, projector="visionzip", keep=0.5)
    inputs = batch(vlm, PROMPTS)
    small(**fresh(inputs))
    rows = small.dpn.trace.visual_rows[0]
    got = small.generate(**fresh(inputs), **{**OPTIONS, "num_beams": 2})
    assert small.dpn.trace.visual_rows[0] == tuple(n for n in rows for _ in range(2))
    whole = [small(**fresh(inputs)).logits[b, -1] for b in range(3)]
    for b in range(3):  # both beams of a sample start from its prompt
        torch.testing.assert_close(got.logits[0][2 * b], whole[b], atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
def test_tiles_compete_in_methods_that_rank_all_tokens(name):
    vlm = sharp(name)
    inputs = batch(vlm, [[1, Picture(112, 112), 5]])
    for method in ("random", "divprune"):
        small = dpn.compress(vlm, projector=method, keep=0.3)
        small(**fresh(inputs))
        (image,) = small.dpn.trace.survivors
        kept = [int(cells.sum()) for cells in image]
        cells = sum(cells.size for cells in image)
        assert sum(kept) == round(0.3 * cells)
        assert len(kept) > 1
    assert kept != [round(0.3 * cells.size) for cells in image]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def test_frames_of_a_video(name):
    vlm = sharp(name)
    inputs = batch(vlm, [[1, 5, Clip(3, 112, 56), 7, 8]])
    for method in ("pooled", "divprune", "visionzip", "prumerge"):
        small = dpn.compress(vlm, projector=method, keep=0.5)
        small(**fresh(inputs))
        (base,), (left,) = small.dpn.trace.passed.base_rows, small.dpn.trace.visual_rows[0]
        newline = int(name == "llava_onevision")
        per_frame = (base - newline) // 3
        assert abs(left - 0.5 * base) <= 3, (method, base, left)
        if method in ("visionzip", "prumerge"):
            kept = [int(cells.sum()) for cells in small.dpn.trace.survivors[0]]
            rows = [span.rows for span in small.dpn.trace.spans]
            assert rows[:3] == [round(0.5 * per_frame)] * 3, (method, kept)
            assert rows[3:] == [0] * newline


@torch.no_grad()
def test_lines_of_a_pooled_map_end_with_a_newline_token():
    vlm = model("llava_next")
    inputs = batch(vlm, [[1, Picture(100, 60), 5]])
    for settings in ({"kernel": [2, 3]}, {"keep": 0.3}):
        small = dpn.compress(vlm, projector="pooled", **settings)
        small(**fresh(inputs))
        _, map_ = small.dpn.trace.spans
        assert (map_.tail, map_.source) == (1, (8, 5))
        owner = map_.owner.reshape(map_.source)
        newlines = owner[:, -1]
        assert sorted(set(newlines)) == list(
            range(map_.grid[1] - 1, map_.rows, map_.grid[1])
        )  # the last row of each line
        assert not set(newlines) & set(owner[:, :-1].flatten())


@torch.no_grad()
@pytest.mark.parametrize("method", [*METHODS, "random"])
def test_an_image_whose_map_has_only_newline_tokens(method):
    vlm = model("llava_next")
    inputs = batch(vlm, [[1, Picture(400, 5), 5], [1, Picture(56, 112), 6]])
    small = dpn.compress(vlm, projector=method, keep=0.5)
    small(**fresh(inputs))
    lines = int((inputs["input_ids"][0] == 100).sum()) - 16
    assert small.dpn.trace.passed.tower_grids[0] == ((4, 4), (lines, 1))
    left = dict.fromkeys(("pooled", "divprune", "random"), 8 + lines // 2)
    assert small.dpn.trace.visual_rows[0][0] == left.get(method, 8)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_half_precision_and_the_original(name):
    vlm = build(name).to(torch.bfloat16)
    inputs = batch(vlm, PROMPTS)
    for key in inputs:
        if inputs[key].is_floating_point():
            inputs[key] = inputs[key].bfloat16()
    before = vlm(**fresh(inputs)).logits
    config = vlm.config.vision_config._attn_implementation
    for method in ("prumerge", "visionzip", "divprune"):
        small = dpn.compress(vlm, projector=method, keep=0.5)
        assert small(**fresh(inputs)).logits.dtype == torch.bfloat16
        assert torch.isfinite(small(**fresh(inputs)).logits[is_text(inputs)]).all()
        ours, theirs = small.state_dict(keep_vars=True), vlm.state_dict(keep_vars=True)
        assert ours.keys() == theirs.keys()
        assert all(ours[key] is theirs[key] for key in theirs)
    assert torch.equal(vlm(**fresh(inputs)).logits, before)
    assert vlm.config.vision_config._attn_implementation == config
    assert not any(hasattr(module, "dpn_reader") for module in vlm.modules())


def test_gradients_reach_the_tower_through_what_is_left():
    vlm = build("qwen2_5_vl")
    small = dpn.compress(vlm, projector="prumerge", keep=0.5).train()
    inputs = batch(vlm, PROMPTS[:2])
    small(**inputs, labels=inputs["input_ids"].masked_fill(~is_text(inputs), -100)).loss.backward()
    assert vlm.model.visual.blocks[0].attn.qkv.weight.grad.abs().max() > 0


@torch.no_grad()
def test_a_projector_before_a_router():
    vlm = model("llava")
    inputs = batch(vlm, PROMPTS)
    small = dpn.compress(
        vlm,
        router={"name": "fastv", "k": 1, "ratio": 0.5},
        projector={"name": "pooled", "kernel": [2, 2]},
    )
    small(**inputs)
    assert [rows[0] for rows in small.dpn.trace.visual_rows] == [4, 2, 2]
    text = small.dpn.router.text
    macs = text.layer_macs(4) + 2 * text.layer_macs(2)
    assert small.dpn.trace.share[0] == pytest.approx(macs / (3 * text.layer_macs(16)))
    assert [int(cells.sum()) for (cells,) in small.dpn.trace.survivors] == [8, 8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"projector": "query_conv"}, "weights that must be trained.*divprune.*visionzip"),
        ({"projector": "downsample"}, "the processor of the model"),
        ({"projector": "dfmr", "keep": 0.5}, "threshold"),
        ({"projector": "pooled", "depth": 2}, "no linear layers"),
        ({"projector": "divprune", "keep": 1.5}, "projector.keep=1.5"),
        ({"projector": "divprune", "kep": 0.5}, "projector.kep.*did you mean `keep`"),
        ({"projector": "pooled", "router": "fastv", "keep": 0.5}, "not clear whether keep"),
        ({"projector": "polled"}, "There is no projector named 'polled'"),
        ({"projector": {"keep": 0.5}}, "must be the name of a projector, or a mapping"),
        ({"projector": 5}, "must be the name of a projector, or a mapping"),
    ],
)
def test_what_is_not_possible(arguments, words):
    with pytest.raises(SettingError, match=words):
        dpn.compress(model("llava"), **arguments)
