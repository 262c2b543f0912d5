"""`generate` of compressed models, in all its modes, and conversations that continue a cache."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import DynamicCache, PreTrainedTokenizerFast, TextStreamer
from transformers.generation.streamers import BaseStreamer

import dpn
from dpn.common.errors import SettingError
from tests import vlms
from tests.core.conftest import few
from tests.core.hidden_columns import fastv_visible, hidden
from tests.vlm_batches import IMAGE, fresh, is_text
from tests.vlms import Clip, Picture

#: One model for each way of positions and layouts.
SOME = ("llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3")
PROMPTS = [
    [1, 5, 6, Picture(100, 60), 7, 8],
    [1, 9, 11],
    [1, 4, Picture(50, 120), 5, Picture(56, 56), 7, 9, 3],
]
WHOLE = {"min_new_tokens": 5, "max_new_tokens": 5, "return_dict_in_generate": True}
GREEDY = {**WHOLE, "do_sample": False, "output_logits": True}
MODES = {
    "greedy": {"do_sample": False},
    "no cache": {"do_sample": False, "use_cache": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "beams without cache": {
        "do_sample": False,
        "num_beams": 2,
        "use_cache": False,
        "suppress_tokens": [IMAGE],  # a stock model stops at an image without pixels
    },
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2},
    "penalty": {"do_sample": False, "repetition_penalty": 1.4},
    "no pair twice": {"do_sample": False, "no_repeat_ngram_size": 2},
    "scores": {"do_sample": False, "output_scores": True},
    "end": {"do_sample": False, "eos_token_id": list(range(3, 90)), "min_new_tokens": 1},
    "dynamic": {"do_sample": False, "cache_implementation": "dynamic"},
}


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def run(model, inputs, **options):
    torch.manual_seed(3)
    return model.generate(**fresh(inputs), **options)


def same(ours, theirs):
    assert torch.equal(ours.sequences, theirs.sequences)
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", few(vlms.NAMES))
def test_without_reduction_answers_are_those_of_the_stock_model(name):
    vlm = vlms.model(name)
    videos = [[1, 4, Clip(6, 56, 56), 8, 9]] if name in vlms.VIDEO_NAMES else []
    inputs = vlms.batch(vlm, PROMPTS + videos)
    for beams in (1, 2):
        options = {**GREEDY, "num_beams": beams}
        same(run(dpn.compress(vlm), inputs, **options), run(vlm, inputs, **options))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", few(SOME))
def test_dropping_in_every_mode_equals_hidden_columns(name, mode):
    """The prompt's columns stay hidden in all steps, those of the answer are seen."""
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, PROMPTS)
    options = {**WHOLE, "output_logits": True, **MODES[mode]}
    small = dpn.compress(vlm, "fastv", k=1)
    with hidden(vlm, 1, fastv_visible(vlm, inputs, 1, 0.5)):
        same(run(small, inputs, **options), run(vlm, inputs, **options))


@pytest.mark.parametrize("name", few(SOME))
def test_without_a_cache_the_router_reads_the_prompt_only(name):
    """With a router whose choice depends on the last row: the answers are those with a cache."""
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, PROMPTS)
    small = dpn.compress(vlm, "fastv", k=1)
    cached = run(small, inputs, **GREEDY)
    kept = [s.owner >= 0 for s in small.dpn.trace.spans]
    same(run(small, inputs, **GREEDY, use_cache=False), cached)
    again = [s.owner >= 0 for s in small.dpn.trace.spans]
    assert all((a == b).all() for a, b in zip(again, kept, strict=True))
    assert small.dpn.inputs.prompt is None


def tokenizer():
    words = {f"w{i}": i for i in range(127)} | {"abcdef": 127}  # the word of StopStringCriteria
    inner = Tokenizer(WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0", eos_token="w2")


def test_stop_strings():
    vlm = vlms.model("qwen3_vl")
    inputs = vlms.batch(vlm, PROMPTS[:1])
    small = dpn.compress(vlm, "vtw", k=1)
    free = run(small, inputs, **GREEDY).sequences[0, -5:]
    options = {**GREEDY, "min_new_tokens": 1, "tokenizer": tokenizer()}
    stopped = run(small, inputs, **options, stop_strings=[f"w{int(free[1])}"]).sequences
    assert stopped.shape[1] == inputs["input_ids"].shape[1] + free.tolist().index(free[1]) + 1


def test_streamers(capsys):
    class Collect(BaseStreamer):
        def __init__(self):
            self.parts = []

        def put(self, value):
            self.parts.append(value.flatten().tolist())

        def end(self):
            self.parts.append("end")

    vlm = vlms.model("idefics3")
    inputs = vlms.batch(vlm, PROMPTS[:1])
    small = dpn.compress(vlm, "vtw", k=1)
    streamer = Collect()
    sequence = run(small, inputs, **GREEDY, streamer=streamer).sequences[0].tolist()
    assert streamer.parts == [sequence[:-5], *[[x] for x in sequence[-5:]], "end"]
    run(small, inputs, **GREEDY, streamer=TextStreamer(tokenizer(), skip_prompt=True))
    assert f"w{sequence[-5]}" in capsys.readouterr().out


@pytest.mark.parametrize("router", ["none", "vtw"])
@pytest.mark.parametrize("name", few(vlms.NAMES))
def test_a_second_turn_continues_the_cache(name, router):
    """Text of several columns after the answer, padded on the left, in generate and in forward."""
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, PROMPTS)
    small = dpn.compress(vlm, router, **({} if router == "none" else {"k": 1}))
    visible = is_text(inputs) if router == "vtw" else inputs["attention_mask"].bool()
    with hidden(vlm, 1, visible):
        turns = [_two_turns(model, inputs) for model in (small, vlm)]
    for ours, theirs in zip(*turns, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0)


def _two_turns(model, inputs):
    """Return the logits of a prompt, an appended text, and of generation that continues both."""
    first = model(**fresh(inputs), use_cache=True)
    again = torch.tensor([[3, 14, 15], [0, 9, 2], [6, 5, 3]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 3, dtype=torch.long)], 1)
    given = {"input_ids": again, "attention_mask": mask, "past_key_values": first.past_key_values}
    stock = not hasattr(model, "dpn")
    if stock and "mm_token_type_ids" in inputs:  # Qwen models would count those of the whole mask
        ids = mask.cumsum(1)[:, -3:] - 1 + model.model.rope_deltas
        given["position_ids"] = ids.expand(3, -1, -1)
    second = model(**given)
    third = model.generate(
        input_ids=torch.cat([inputs["input_ids"], again, torch.tensor([[7], [8], [9]])], 1),
        attention_mask=torch.cat([mask, mask[:, -1:]], 1),
        past_key_values=second.past_key_values,
        **GREEDY,
    )
    return [first.logits[:, -1], second.logits, *third.logits, third.sequences]


def test_a_generated_placeholder_is_text_and_a_second_image_is_refused():
    vlm = vlms.model("llava")
    inputs = vlms.batch(vlm, [[1, 5, Picture(), 7]])
    small = dpn.compress(vlm)
    outs = []
    for model in (small, vlm):
        cache = model(**fresh(inputs), use_cache=True).past_key_values
        outs.append(model(input_ids=torch.tensor([[100, 8]]), past_key_values=cache).logits)
    torch.testing.assert_close(*outs, atol=2e-6, rtol=0)
    cache = small(**fresh(inputs), use_cache=True).past_key_values
    with pytest.raises(SettingError, match="An image cannot be appended"):
        small(
            **vlms.batch(vlm, [[5, Picture(), 7]]) | {"attention_mask": None}, past_key_values=cache
        )


def test_the_callers_own_cache_is_filled():
    """One cache for several turns of `generate`, as in the documentation of transformers."""
    vlm = vlms.model("qwen2_5_vl")
    inputs = vlms.batch(vlm, [[1, 5, Picture(90, 60), 7, 8]])
    small = dpn.compress(vlm, "vtw", k=1)
    turns = []
    with hidden(vlm, 1, is_text(inputs)):
        for model in (small, vlm):
            cache = DynamicCache(config=model.config.text_config)
            first = run(model, inputs, **GREEDY, past_key_values=cache).sequences
            assert cache.get_seq_length() == first.shape[1] - 1
            again = torch.cat([first, torch.tensor([[9, 4, 6]])], 1)
            turns.append(run(model, {"input_ids": again}, **GREEDY, past_key_values=cache))
    same(*turns)


def test_a_cache_of_another_model():
    vlm = vlms.model("llava")
    inputs = vlms.batch(vlm, [[1, 5, Picture(), 7]])
    small = dpn.compress(vlm, "vtw", k=1)
    text = {"input_ids": torch.tensor([[8]])}
    stock = vlm(**fresh(inputs), use_cache=True).past_key_values
    with pytest.raises(SettingError, match="filled by another model"):
        small(**text, past_key_values=stock)
    reduced = small(**fresh(inputs), use_cache=True).past_key_values
    with pytest.raises(SettingError, match="another model cannot continue"):
        vlm(**text, past_key_values=reduced)
