"""What `dpn.compress` refuses: each in one sentence that says what to do instead."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers import StaticCache

import dpn
from dpn.common.errors import SettingError
from dpn.families import family_of
from tests import vlms
from tests.vlm_batches import IMAGE, fresh
from tests.vlms import Clip, Picture

PROMPTS = [[1, 5, 6, Picture(100, 60), 7, 8], [1, 9, 11]]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def refused(model, sentence, **options):
    with pytest.raises(SettingError, match=sentence) as caught:
        dpn.compress(model, **options)
    assert "\n" not in str(caught.value)


# Models


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gemma3", "both directions among the tokens of an image"),
        ("paligemma", "both directions among all tokens"),
        ("mllama", "cross-attention"),
        ("internvl_chat", "-hf"),
        (dpn.DPNConfig.model_type, "choose its router in its config"),
        ("blip-2", "Supported are idefics3, internvl, llava, llava_next"),
        (None, "Supported are"),
    ],
)
def test_other_families(kind, reason):
    with pytest.raises(SettingError, match=reason):
        family_of(SimpleNamespace(model_type=kind))


def test_a_tower_whose_lines_are_separated_by_text():
    vision = SimpleNamespace(model_type="pixtral")
    with pytest.raises(SettingError, match="separated by tokens"):
        family_of(SimpleNamespace(model_type="llava", vision_config=vision))


def test_what_is_not_a_model():
    vlm = vlms.model("llava")
    refused("llava-hf/llava-1.5-7b-hf", "not an object of type str")
    refused(nn.DataParallel(vlm), "not an object of type DataParallel; .* wrapped.module")
    refused(vlm.model, "that generates text, not LlavaModel")
    refused(vlm.model.language_model, "does not support models of type 'llama'")
    refused(vlm.config, "not an object of type LlavaConfig")


@pytest.mark.slow
def test_a_compiled_model():
    compiled = torch.compile(vlms.model("llava"))
    refused(compiled, "not an object of type OptimizedModule; .* compiled._orig_mod")


def test_a_pipeline():
    pipe = object.__new__(transformers.ImageTextToTextPipeline)
    pipe.model = vlms.model("llava")
    refused(pipe, r"not an object of type ImageTextToTextPipeline; .*pipeline\.model")


def test_code_from_elsewhere():
    """A class of the Hub that calls its type like one of transformers."""

    class Foreign(transformers.PreTrainedModel):
        config_class, _supports_sdpa = transformers.LlavaConfig, True

    Foreign.__module__ = "transformers_modules.someone.modeling_llava"
    refused(Foreign(vlms.model("llava").config), "without trust_remote_code")


def test_an_own_subclass_works():
    class Mine(transformers.LlavaForConditionalGeneration):
        pass

    vlm = vlms.model("llava")
    mine = Mine(vlm.config).eval()
    inputs = vlms.batch(vlm, PROMPTS)
    small = dpn.compress(mine)
    assert isinstance(small, Mine)
    torch.testing.assert_close(small(**fresh(inputs)).logits[:, -1], mine(**inputs).logits[:, -1])


def test_a_compressed_model():
    small = dpn.compress(vlms.model("llava"))
    refused(small, "compressed already")
    dpn.compress(dpn.restore(small))


def test_several_devices():
    vlm = vlms.build("llava")
    vlm.hf_device_map = {"model.vision_tower": 0, "lm_head": 1}
    refused(vlm, r"several devices \(0, 1\)")


def test_replaced_forward_functions():
    vlm = vlms.build("llava")
    vlm.model.forward = vlm.model.forward
    refused(vlm, "The forward of LlavaModel was replaced")
    vlm = vlms.build("llava")
    vlm.model.language_model.layers[1].compile()
    refused(vlm, "The forward of LlamaDecoderLayer was replaced")


def test_hooks_of_accelerate():
    """On one device they only move inputs; offloaded weights are not there."""
    accelerate = pytest.importorskip("accelerate")
    vlm = vlms.build("llava")
    inputs = vlms.batch(vlm, PROMPTS)
    hooked = accelerate.dispatch_model(vlm, {"": "cpu"}, force_hooks=True)
    small = dpn.compress(hooked, "vtw", k=1)
    small(**fresh(inputs))
    assert small.dpn.trace.visual_rows[1] == (0, 0)
    assert "forward" in vars(hooked)
    offloaded = accelerate.cpu_offload(vlms.build("llava"))
    refused(offloaded, "offloaded or not loaded yet")


# Inputs


@pytest.fixture
def small():
    return dpn.compress(vlms.model("llava"), "vtw", k=1)


@pytest.fixture
def inputs():
    return vlms.batch(vlms.model("llava"), PROMPTS)


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_outputs_of_layers(small, inputs, name):
    for call, options in ((small, {}), (small.generate, {"max_new_tokens": 2})):
        with pytest.raises(SettingError, match=f"{name}=True is not supported"):
            call(**fresh(inputs), **options, **{name: True})
    vlm = vlms.build("llava")
    setattr(
        vlm.config.text_config, {"output_attentions": "_output_attentions"}.get(name, name), True
    )
    with pytest.raises(SettingError, match=f"{name}=True is not supported"):
        dpn.compress(vlm)(**fresh(inputs))


def test_masks(small, inputs):
    columns = inputs["input_ids"].shape[1]
    for mask in (
        torch.ones(2, 1, columns, columns, dtype=torch.bool),
        {"full_attention": torch.ones(2, 1, columns, columns)},
    ):
        with pytest.raises(SettingError, match=r"must be \[B, T\] with 1"):
            small(**{**fresh(inputs), "attention_mask": mask})
    holes, empty, packed = (inputs["attention_mask"].clone() for _ in range(3))
    holes[0, 4], empty[1], packed[:, 5:] = 0, 0, 2
    for mask, sentence in (
        (holes, "attention_mask of sample 0 must be one run of ones"),
        (empty, "0 in all columns of a sample"),
        (packed, "several sequences in one row"),
    ):
        with pytest.raises(SettingError, match=sentence):
            small(**{**fresh(inputs), "attention_mask": mask})


def test_packed_positions(small):
    vlm = vlms.model("llava")
    inputs = vlms.batch(vlm, [[1, 5, Picture(), 7, 1, 6, 5, 4]])
    del inputs["attention_mask"]
    columns = inputs["input_ids"].shape[1]
    restart = torch.cat([torch.arange(columns - 4), torch.arange(4)])[None]
    gap = torch.arange(columns)[None] + (torch.arange(columns) > 20) * 3
    for positions, options in ((restart, {}), (restart, {"use_cache": False})):
        with pytest.raises(SettingError, match="several sequences in one row"):
            small(**fresh(inputs), position_ids=positions, **options)
    with pytest.raises(SettingError, match="several sequences in one row"):
        small(**fresh(inputs), position_ids=gap, use_cache=False)
    plain = dpn.compress(vlm)
    theirs = vlm(**fresh(inputs), position_ids=gap).logits  # with a cache, no packing
    torch.testing.assert_close(plain(**fresh(inputs), position_ids=gap).logits, theirs)


def test_columns_that_do_not_fit(small, inputs):
    with pytest.raises(SettingError, match="16 image tokens, but the 0 encoded images have 0"):
        small(**{k: v for k, v in inputs.items() if k != "pixel_values"})
    cut = {
        k: v[:, :-6] if v.ndim == 2 else v
        for k, v in vlms.batch(vlms.model("llava"), [[1, 5, Picture()]]).items()
    }
    with pytest.raises(ValueError, match="tokens"):  # of transformers
        small(**cut)


def test_a_sample_of_images_only(small):
    vlm = vlms.model("llava")
    inputs = vlms.batch(vlm, [[1, 5, Picture()], [Picture()]])
    with pytest.raises(SettingError, match="Sample 1 holds nothing but images"):
        small(**fresh(inputs))
    dpn.compress(vlm, "fastv", k=1)(**inputs)  # keeps some of its rows


def test_truncation_that_keeps_the_number_of_tokens(small):
    """One sample lost a column of its image to the other one."""
    inputs = vlms.batch(vlms.model("llava"), [[1, Picture(), 5, 6], [1, Picture(), 5, 6]])
    inputs["input_ids"][0, 16], inputs["input_ids"][1, 17] = 7, IMAGE
    with pytest.raises(SettingError, match="Sample 0 has 15 image tokens, which do not fit"):
        small(**inputs)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_images_without_text_between_them(name):
    """Qwen models cannot tell where the second one begins; others work like the stock model."""
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, [[1, 5, Picture(), Picture(), 7]])
    small = dpn.compress(vlm)
    if name == "qwen2_vl":  # without the tokens between the images
        keep = [0, 1, 2, *range(3, 7), *range(9, 13), 13, 14]
        inputs |= {k: v[:, keep] for k, v in inputs.items() if v.shape == (1, 15)}
        with pytest.raises((RuntimeError, StopIteration)):  # of transformers
            small(**fresh(inputs))
        return
    ours, theirs = small(**fresh(inputs)).logits, vlm(**inputs).logits
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_caches(small, inputs):
    cache = StaticCache(small.config.text_config, max_cache_len=64)
    with pytest.raises(SettingError, match="cannot fill a StaticCache"):
        small(**fresh(inputs), past_key_values=cache)
    for kind in ("static", "offloaded"):
        with pytest.raises(SettingError, match="leave out cache_implementation"):
            small.generate(**fresh(inputs), cache_implementation=kind, max_new_tokens=2)


def test_other_ways_of_decoding(small, inputs):
    one = {k: v[:1] for k, v in inputs.items()}
    assistant = vlms.model("llava")
    for options in (
        {"assistant_model": assistant},
        {"prompt_lookup_num_tokens": 2},
    ):
        with pytest.raises(SettingError, match="assisted decoding is not supported"):
            small.generate(**fresh(one), **options, max_new_tokens=6, do_sample=False)
    with pytest.raises((SettingError, ValueError), match="prefill_chunk_size"):
        small.generate(**fresh(one), prefill_chunk_size=8, max_new_tokens=2)
    text = vlms.batch(assistant, [[1, 5, 6, 7, 8], [1, 9, 8, 7, 3]])
    chunks = {"prefill_chunk_size": 2, "max_new_tokens": 2, "do_sample": False}
    assert torch.equal(small.generate(**text, **chunks), assistant.generate(**text, **chunks))
    text = vlms.batch(assistant, [[1, 5, 6, 7, 8], [1, 9]])
    with pytest.raises(SettingError, match="with prefill_chunk_size in each chunk"):
        small.generate(**text, **chunks)


def test_the_text_model_by_itself(small, inputs):
    small(**fresh(inputs))
    with pytest.raises(SettingError, match="was called by itself"):
        small.model.language_model(input_ids=inputs["input_ids"])


def test_a_video_of_one_frame():
    """Its newline token is not a part of the grid."""
    vlm = vlms.model("llava_onevision")
    small = dpn.compress(vlm)
    inputs = vlms.batch(vlm, [[1, 5, Clip(1), 7]])
    torch.testing.assert_close(small(**fresh(inputs)).logits, vlm(**inputs).logits)
    assert [span.grid for span in small.dpn.trace.spans] == [(2, 2), (1, 1)]
