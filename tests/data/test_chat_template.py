"""Hugging Face's `apply_chat_template` against `DPNProcessor.prompt` and `__call__`."""

import itertools
import random
from collections import Counter

import jinja2
import pytest
import torch
from transformers import AutoTokenizer

from dpn import DPNProcessor
from dpn.data.batch import DataError
from dpn.data.conversation import IMAGE, TEMPLATES
from dpn.data.tokenizer import train_tokenizer
from tests.data.conftest import CORPUS
from tests.data.test_conversation import CONVERSATIONS, llama_like, odd_conversation
from tests.talkers import picture

TOKENIZERS = {"bytes": train_tokenizer(CORPUS), "llama": llama_like()}


@pytest.fixture(params=itertools.product(TOKENIZERS, TEMPLATES, [True, False]), ids=str)
def processor(request):
    tokenizer, template, router_token = request.param
    return DPNProcessor(
        TOKENIZERS[tokenizer], template, image_size=8, patch_size=4, router_token=router_token
    )


def asked(messages):
    """Return plain messages up to the last question."""
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[m["from"]], "content": m["value"]} for m in messages]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def typed(messages, images):
    """Convert messages to typed parts, each image part with its image."""
    images = iter(images)
    turns = []
    for message in messages:
        first, *others = message["content"].split(IMAGE)
        parts = [{"type": "text", "text": first}] if first else []
        for other in others:
            parts.append({"type": "image", "image": next(images)})
            parts += [{"type": "text", "text": other}] if other else []
        turns.append({"role": message["role"], "content": parts})
    return turns


def pictures(messages):
    return [picture(n) for n in range(sum(m["content"].count(IMAGE) for m in messages))]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_text_and_tensors_are_those_of_the_processor(name, processor):
    messages = asked(CONVERSATIONS[name][0])
    images = pictures(messages)
    want = processor(messages=messages, images=images or None)
    parts = typed(messages, images)
    for form in (messages, parts):
        text = processor.apply_chat_template(form, add_generation_prompt=True)
        assert text == processor.prompt(messages)
        got = processor(text=text, images=images or None)
        if form is parts or not images:
            got = processor.apply_chat_template(
                form,
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
        assert set(got) == set(want)
        assert all(torch.equal(got[key], want[key]) for key in want)


def test_conversations_of_a_batch(processor):
    several = [asked(CONVERSATIONS[name][0]) for name in ("no image", "an image in each turn")]
    images = [pictures(messages) for messages in several]
    want = processor(messages=several, images=images)
    parts = [typed(*pair) for pair in zip(several, images, strict=True)]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    got = processor.apply_chat_template(parts, **options)
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_both_accept_and_refuse_the_same_conversations(processor):
    rng = random.Random(0)
    outcomes = Counter()
    for _ in range(60):
        messages = asked(odd_conversation(rng))
        try:
            want = processor.prompt(messages)
        except DataError:
            want = "refused"
        try:
            got = processor.apply_chat_template(messages, add_generation_prompt=True)
        except jinja2.TemplateError:
            got = "refused"
        assert got == want
        outcomes[want == "refused"] += 1
    assert min(outcomes.values()) > 5


USER, OTHER = ({"role": role, "content": "Hi"} for role in ("user", "assistant"))
VIDEO = {"role": "user", "content": [{"type": "video"}]}


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([{"role": "system", "content": "Be nice."}, USER], "the role system is unknown"),
        ([USER, USER], "two turns of one side"),
        ([USER, OTHER, OTHER], "two turns of one side"),
        ([VIDEO], "neither an image nor text"),
        ([{"role": "user", "content": ""}], "is empty"),
        ([USER, {"role": "assistant", "content": IMAGE}, USER], "reserved token"),
    ],
)
def test_invalid_messages_are_refused(messages, sentence):
    processor = DPNProcessor(TOKENIZERS["bytes"])
    with pytest.raises(DataError):
        processor.prompt(messages)
    with pytest.raises(jinja2.TemplateError, match=sentence):
        processor.apply_chat_template(messages, add_generation_prompt=True)


def test_text_without_a_generation_prompt_or_with_an_answer_at_the_end():
    processor = DPNProcessor(TOKENIZERS["bytes"], "short")
    assert processor.apply_chat_template([USER]) == "USER: Hi"
    assert processor.apply_chat_template([USER, OTHER]) == "USER: Hi ASSISTANT: Hi</s>"
    open_end = processor.apply_chat_template([USER, OTHER], continue_final_message=True)
    assert open_end == "USER: Hi ASSISTANT: Hi"


def test_other_libraries_find_the_template_in_the_folder(tmp_path):
    messages = asked(CONVERSATIONS["several turns"][0])
    DPNProcessor(TOKENIZERS["bytes"], "short").save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    for template in ("short", "v1"):
        processor = DPNProcessor.from_pretrained(tmp_path, template=template)
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        assert text == processor.prompt(messages)
        same = text == plain.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert same == (template == "short")
