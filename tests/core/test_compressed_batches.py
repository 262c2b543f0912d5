"""`dpn.compress` on batches of every kind: padding, several images, videos, text-only samples."""

import pytest
import torch

import dpn
from dpn.common.errors import SettingError
from tests import vlms
from tests.core.conftest import few
from tests.core.hidden_columns import fastv_visible, hidden
from tests.vlm_batches import fresh, is_text, shown
from tests.vlms import Clip, Picture

#: Of different lengths; images of different sizes, two in one prompt, none in another one.
IMAGES = [
    [1, 5, 6, Picture(100, 60), 7, 8],
    [1, 9, 11],
    [1, 4, Picture(50, 150), 5, Picture(56, 56), 7, 9, 3],
]
#: Six frames of 2 x 2 tokens: for Qwen2-VL, time runs further than height and width.
VIDEOS = [
    [1, 4, Clip(6, 56, 56), 8, 9],
    [1, Picture(90, 90), 3, Clip(6, 56, 100), 8, 9, 12],
    [1, 9],
]


def mixed(name):
    return IMAGES + (VIDEOS if name in vlms.VIDEO_NAMES else [])


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def close(ours, theirs, columns=slice(None)):
    torch.testing.assert_close(ours[columns], theirs[columns], atol=2e-6, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", few(vlms.NAMES))
def test_without_reduction_a_batch_gives_the_stock_logits(name, side):
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, mixed(name), side)
    small = dpn.compress(vlm)
    close(small(**fresh(inputs)).logits, vlm(**fresh(inputs)).logits, shown(inputs))
    images = [sum(not isinstance(part, int) for part in prompt) for prompt in mixed(name)]
    assert [bool(rows) for rows in small.dpn.trace.visual_rows[0]] == [n > 0 for n in images]


@pytest.mark.parametrize("name", few(vlms.NAMES))
def test_text_alone(name):
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, [[1, 5, 6, 7, 8], [1, 9, 11]])
    inputs.pop("mm_token_type_ids", None)
    small = dpn.compress(vlm, "vtw", k=1)
    close(small(**fresh(inputs)).logits, vlm(**fresh(inputs)).logits, shown(inputs))
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(small.generate(**inputs, **options), vlm.generate(**inputs, **options))


@pytest.mark.parametrize("name", few(vlms.NAMES))
def test_embeddings_in_place_of_ids(name):
    vlm = vlms.build(name)  # Qwen models keep positions of an earlier call for embeddings
    inputs = vlms.batch(vlm, IMAGES)
    inputs["inputs_embeds"] = vlm.get_input_embeddings()(inputs.pop("input_ids"))
    small = dpn.compress(vlm, "vtw", k=2)
    small(**fresh(inputs))
    assert not any(small.dpn.trace.visual_rows[2])
    small = dpn.compress(vlm)
    close(small(**fresh(inputs)).logits, vlm(**fresh(inputs)).logits, shown(inputs))


@pytest.mark.parametrize("router", ["vtw", "fastv"])
@pytest.mark.parametrize("name", few(vlms.NAMES))
def test_dropping_hides_columns_from_later_layers(name, router):
    vlm = vlms.model(name)
    for side in ("left", "right"):
        inputs = vlms.batch(vlm, mixed(name), side)
        visible = is_text(inputs) if router == "vtw" else fastv_visible(vlm, inputs, 1, 0.5)
        with hidden(vlm, 1, visible):
            expected = vlm(**fresh(inputs)).logits
        small = dpn.compress(vlm, router, k=1)
        logits = small(**fresh(inputs)).logits
        close(logits, expected, is_text(inputs))
        assert [sum(rows) for rows in small.dpn.trace.visual_rows[1:]] == [
            int((visible & ~is_text(inputs)).sum())
        ] * 2
        whole = vlm(**fresh(inputs)).logits
        assert (logits - whole)[is_text(inputs)].abs().max() > 1e-3  # the reduction shows


@pytest.mark.parametrize("name", few(vlms.NAMES))
def test_a_batch_equals_its_samples_alone(name):
    vlm = vlms.model(name)
    small = dpn.compress(vlm, "fastv", k=1, ratio=0.6)
    inputs = vlms.batch(vlm, mixed(name))
    logits, seed = small(**fresh(inputs)).logits, 0
    rows = small.dpn.trace.visual_rows
    for sample, prompt in enumerate(mixed(name)):
        alone = vlms.batch(vlm, [prompt], seed=seed)
        seed += sum(not isinstance(part, int) for part in prompt)
        one = small(**fresh(alone)).logits[0]
        assert [r[0] for r in small.dpn.trace.visual_rows] == [r[sample] for r in rows]
        close(logits[sample][shown(inputs)[sample]], one)


@pytest.mark.parametrize("name", few(vlms.NAMES))
def test_pooling_a_batch_equals_its_samples_alone(name):
    """A very narrow image among them, of which LLaVA-NeXT keeps newline tokens only."""
    vlm = vlms.model(name)
    small = dpn.compress(vlm, "static", layers=[1], positions="keep")
    prompts = [[1, 5, Picture(100, 60), 7], [1, 9], [1, Picture(400, 9), 5, Picture(50, 150), 7]]
    inputs, seed = vlms.batch(vlm, prompts), 0
    logits = small(**fresh(inputs)).logits
    before, after = small.dpn.trace.visual_rows[1:]
    assert all(b < a for a, b in zip(before, after, strict=True) if a)
    for sample, prompt in enumerate(prompts):
        alone = vlms.batch(vlm, [prompt], seed=seed)
        seed += sum(not isinstance(part, int) for part in prompt)
        close(logits[sample][shown(inputs)[sample]], small(**alone).logits[0])


@pytest.mark.parametrize("name", ["llava", "internvl", "idefics3"])
def test_prompts_that_end_or_begin_with_an_image(name):
    """The last column of an image stands for its last row that is left."""
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, [[Picture(), 5, 6], [1, 5, Picture()]], "right")
    with hidden(vlm, 1, is_text(inputs)):
        expected = vlm(**fresh(inputs)).logits
    logits = dpn.compress(vlm, "vtw", k=1)(**fresh(inputs)).logits
    close(logits, expected, is_text(inputs))
    if name == "llava":  # other prompts end with a token after the image
        close(logits[1, 17], logits[1, 1])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_the_answer_to_a_long_video_does_not_start_at_the_last_position(name):
    """Text after a video continues after its height and width, the answer after its time."""
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, [VIDEOS[0]])
    given = {k: v for k, v in inputs.items() if not k.startswith("pixel")}
    positions, delta = vlm.model.get_rope_index(**given)
    assert int(delta[0, 0]) + inputs["input_ids"].shape[1] > int(positions[0, 0, -1]) + 1
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    options["return_dict_in_generate"] = True
    ours = dpn.compress(vlm).generate(**fresh(inputs), **options)
    theirs = vlm.generate(**fresh(inputs), **options)
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "internvl"])
def test_given_position_ids(name):
    """Those of one row for the whole batch, and with gaps."""
    vlm = vlms.model(name)
    prompts = [[1, 5, Picture(), 7, 8], [1, 6, Picture(), 9, 8]]
    inputs = vlms.batch(vlm, prompts)
    columns = inputs["input_ids"].shape[1]
    ids = torch.arange(3, 3 + columns)[None]
    small = dpn.compress(vlm, "vtw", k=1)
    for positions in (ids, ids + (ids > 9) * 5, ids.expand(2, -1)):
        given = {**inputs, "position_ids": positions}
        with hidden(vlm, 1, is_text(inputs)):
            expected = vlm(**fresh(given)).logits
        close(small(**fresh(given)).logits, expected, is_text(inputs))
    if name != "llava" and name != "internvl":
        axes = torch.stack([ids[0], ids[0] // 2, ids[0] // 3, ids[0] % 5])[:, None].expand(
            -1, 2, -1
        )
        for positions in (axes[1:], axes):
            given = {**inputs, "position_ids": positions}
            with hidden(vlm, 1, is_text(inputs)):
                expected = vlm(**fresh(given)).logits
            close(small(**fresh(given)).logits, expected, is_text(inputs))


def test_grids_of_one_call_are_not_used_in_the_next():
    """Two images of equally many tokens in other grids, of which the second is encoded before."""
    vlm = vlms.model("qwen2_vl")
    small = dpn.compress(vlm)
    wide = vlms.batch(vlm, [[1, 5, Picture(56, 168), 7]])
    tall = vlms.batch(vlm, [[1, 5, Picture(168, 56), 7]])
    small(**fresh(wide))
    assert small.dpn.trace.spans[0].grid == (2, 6)
    if not hasattr(vlm, "_expand_multimodal_outputs"):
        pytest.skip("This release of transformers does not encode images before the forward pass.")
    given = {k: v for k, v in tall.items() if k != "pixel_values"}
    encode = tall["pixel_values"], tall["image_grid_thw"]
    with pytest.raises(SettingError, match="get_image_features of this"):
        small(**fresh(given), mm_encoder_outputs={"image": vlm.model.get_image_features(*encode)})
    features = small.model.get_image_features(*encode)
    small(**fresh(wide))
    logits = small(**fresh(given), mm_encoder_outputs={"image": features}).logits
    assert small.dpn.trace.spans[0].grid == (6, 2)
    close(logits, vlm(**fresh(tall)).logits)
    with pytest.raises(SettingError, match="12 image tokens, but the 0 encoded"):
        small(**{k: v for k, v in given.items() if k != "image_grid_thw"})


def test_labels_of_one_call_are_not_used_in_the_next():
    vlm = vlms.model("llava")
    small = dpn.compress(vlm, "fastv", k=1)
    inputs = vlms.batch(vlm, [[1, 5, Picture(), 7, 8, 9, 10]])
    plain = small(**fresh(inputs)).logits
    labels = inputs["input_ids"].masked_fill(torch.arange(22) < 19, -100)
    supervised = small(**fresh(inputs), labels=labels[:, : plain.shape[1]]).logits
    assert not torch.equal(supervised, plain)  # the router read less
    close(small.lm_head(small.model(**fresh(inputs)).last_hidden_state), plain)
