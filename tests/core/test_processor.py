import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dpn.data.batch import DataError, Sample, collate
from dpn.data.conversation import read_turns
from dpn.data.tokenizer import train_tokenizer
from dpn.model import DPNProcessor
from tests.data.conftest import CORPUS, gpt, human

QUESTION = {"role": "user", "content": "<image>\nWhat colour is the cat?"}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the user's questions. "
)


def picture(width, height, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def processor():
    return DPNProcessor(
        train_tokenizer(CORPUS),
        image_mode="none",
        image_size=32,
        image_mean=(0.1, 1 / 3, 0.7),
        image_std=(0.3, 0.2, 0.1),
        patch_size=4,
    )


def test_prompt_of_template_v1(processor):
    prompt = processor.prompt([QUESTION])
    assert prompt == f"{SYSTEM}USER: <image>\nWhat colour is the cat?<ROUTER> ASSISTANT:"
    follow_up = [QUESTION, {"role": "assistant", "content": "black"}, human("Sure?")]
    assert processor.prompt(follow_up) == prompt + " black</s>USER: Sure?<ROUTER> ASSISTANT:"
    assert processor.prompt([human("Hi")]) == f"{SYSTEM}USER: Hi ASSISTANT:"
    without = DPNProcessor(processor.tokenizer, router_token=False)
    assert without.prompt([QUESTION]) == prompt.replace("<ROUTER>", "")
    short = DPNProcessor(processor.tokenizer, template="short")
    assert SYSTEM + short.prompt(follow_up) == processor.prompt(follow_up)
    with pytest.raises(DataError, match="reserved token <ROUTER>"):
        processor.prompt([human("<ROUTER>")])


def test_a_prompt_equals_the_start_of_the_training_sample(processor):
    messages = [QUESTION, gpt("It is black."), human("Sure?"), gpt("Yes.")]
    ids, labels = processor.encode(read_turns(messages), 1)
    images = [picture(8, 4)]
    for asked in (1, 3):
        prompt = processor(messages=messages[:asked], images=images).input_ids[0].tolist()
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt) - 1] == -100
        assert labels[len(prompt)] != -100


def test_call_gives_the_tensors_of_a_batch(processor):
    images = [picture(8, 4, 1), picture(4, 12, 2), picture(4, 4, 3)]
    texts = ["<image>\nWhat?", "How many birds?", "<image> and <image>?"]
    ids = [
        processor(text, own).input_ids[0].tolist()
        for text, own in zip(texts, [images[:1], None, images[1:]], strict=True)
    ]
    pixels = [processor.transform(image) for image in images]
    samples = [Sample(i, i, p) for i, p in zip(ids, [pixels[:1], [], pixels[1:]], strict=True)]
    for side in ("left", "right"):
        want = collate(samples, processor.pad_token_id, side).model_inputs()
        del want["labels"], want["sample_ids"]
        for form in (images, [images[:1], [], images[1:]]):
            got = processor(texts, form, padding_side=side)
            assert set(got) == set(want)
            assert all(torch.equal(got[name], want[name]) for name in want)
    assert all(row[0] == processor.tokenizer.bos_token_id for row in ids)
    assert set(processor("Hi")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("text", "images", "sentence"),
    [
        ("<image>", None, r"have \[1\] <image> marks, but \[0\] images were given"),
        ("Hi", [picture(4, 4)], r"have \[0\] <image> marks, but \[1\]"),
        (["<image>", "<image>"], [[picture(4, 4)] * 2, []], r"\[1, 1\] .* but \[2, 0\]"),
        (["<image>", "Hi"], [picture(4, 4)] * 2, r"\[1, 0\] .* but \[1, 1\]"),
        (None, None, "either `text` or `messages`"),
    ],
)
def test_marks_and_images_must_match(text, images, sentence, processor):
    with pytest.raises(ValueError, match=sentence):
        processor(text, images)


def test_saved_and_reloaded_is_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    # A model's files in the same folder must not change how the tokenizer is found.
    (tmp_path / "config.json").write_text('{"model_type": "dpn_llava"}')
    again = DPNProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.transform == processor.transform
    assert (
        again.tokenizer.backend_tokenizer.to_str() == processor.tokenizer.backend_tokenizer.to_str()
    )
    images = [picture(8, 4), picture(4, 4)]
    conversations = [[QUESTION], [{"role": "user", "content": "<image> 12 Zoë?"}]]
    before, after = (p(messages=conversations, images=images) for p in (processor, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (again.image_token_id, again.router_token_id, again.pad_token_id, again.vocab_size) == (
        processor.image_token_id,
        processor.router_token_id,
        processor.pad_token_id,
        processor.vocab_size,
    )
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert plain("USER: Zoë 12").input_ids == processor.tokenizer("USER: Zoë 12").input_ids
    again.save_pretrained(tmp_path / "twice")
    for name in ("tokenizer.json", "processor_config.json"):
        assert (tmp_path / "twice" / name).read_text() == (tmp_path / name).read_text()
    assert DPNProcessor.from_pretrained(tmp_path, image_mode="pad").transform.mode == "pad"


def test_missing_tokens_are_added_to_a_tokenizer():
    foreign = Tokenizer(models.BPE())
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], show_progress=False)
    foreign.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=foreign, bos_token="<s>", eos_token="</s>")
    assert "<image>" not in tokenizer.get_vocab()
    processor = DPNProcessor(tokenizer, patch_size=4, image_size=4)
    assert len({processor.image_token_id, processor.router_token_id, processor.vocab_size}) == 3
    assert processor.pad_token_id == tokenizer.eos_token_id
    ids = processor(messages=[QUESTION], images=picture(4, 4)).input_ids[0].tolist()
    assert ids.count(processor.image_token_id) == ids.count(processor.router_token_id) == 1


def test_code_in_a_folder_is_not_run_and_unknown_settings_are_refused(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"processor_class": "evil.Evil", "auto_map": {}}))
    with pytest.raises(ValueError, match="unknown settings auto_map; known are image_mean"):
        DPNProcessor.from_pretrained(tmp_path)
    file.write_text(json.dumps(settings | {"processor_class": "evil.Evil"}))
    assert type(DPNProcessor.from_pretrained(tmp_path)) is DPNProcessor
    words = tmp_path / "tokenizer_config.json"
    words.write_text(
        json.dumps(json.loads(words.read_text()) | {"auto_map": {"AutoTokenizer": "evil.Evil"}})
    )
    assert type(DPNProcessor.from_pretrained(tmp_path)) is DPNProcessor
    with pytest.raises(OSError, match="nowhere"):
        DPNProcessor.from_pretrained(tmp_path / "nowhere")


def test_decoding_leaves_special_tokens_out(processor):
    rows = [processor.tokenizer(text).input_ids for text in ("<s> black</s><pad>", " 12 birds</s>")]
    assert processor.batch_decode(rows) == ["black", "12 birds"]
    assert processor.decode(torch.tensor(rows[0]), skip_special_tokens=False).endswith("</s><pad>")


def test_unsuitable_tokenizers_are_refused(processor):
    with pytest.raises(ValueError, match="needs a fast tokenizer"):
        DPNProcessor(object())
    tokenizer = train_tokenizer(CORPUS)
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="BOS and EOS"):
        DPNProcessor(tokenizer)
