import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.logging import get_logger

from dpn.common.errors import SettingError
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


def same(got, want):
    return set(got) == set(want) and all(torch.equal(got[name], want[name]) for name in want)


def test_the_order_of_hugging_face_is_recognised(processor, tmp_path):
    image, text = picture(8, 4), "<image>\nWhat?"
    want = processor(text=text, images=image)
    assert same(processor(image, text), want)
    assert same(processor(text, image), want)
    assert same(processor([image], [text]), want)
    assert same(processor(images=[[image]], text=[text]), want)
    image.save(tmp_path / "0.png")
    assert same(processor(str(tmp_path / "0.png"), text), want)
    assert same(processor(text, str(tmp_path / "0.png")), want)
    with pytest.raises(SettingError, match="either `text` or `messages`"):
        processor(image)


def test_arrays_and_tensors_are_images(processor):
    image, text = picture(8, 4), "<image>\nWhat?"
    want = processor(text, image)
    array = np.asarray(image)
    channels_first = torch.from_numpy(array.transpose(2, 0, 1).copy())
    for form in (
        array,
        array.transpose(2, 0, 1),
        array.astype(np.float32) / 255,
        array.astype(np.int64),
        torch.from_numpy(array.copy()),
        channels_first,
        channels_first / 255,
        (channels_first / 255).double(),
        channels_first[None],
        [channels_first],
        [[channels_first]],
    ):
        assert same(processor(text, form), want)
    several = processor([text, text], torch.stack([channels_first, channels_first]))
    assert same(several, processor([text, text], [image, image]))
    grey = processor(text, image.convert("L"))
    assert same(processor(text, np.asarray(image.convert("L"))), grey)
    assert same(processor(text, np.asarray(image.convert("L"))[None]), grey)
    mask = np.eye(4, dtype=bool)
    white = processor(text, Image.fromarray(mask.astype(np.uint8) * 255))
    assert same(processor(text, mask), white)
    assert same(processor(text, torch.eye(4)), white)
    for odd, sentence in (
        (array + 0.5, r"floats in \[0, 1\]"),
        (array.astype(np.int64) * 300, "cannot be read"),
        (np.zeros((4, 4, 7)), "1 or 3 channels"),
        ({"bytes": b""}, "An image is a dict"),
        (3, "An image is a int"),
    ):
        with pytest.raises(DataError, match=sentence):
            processor(text, odd)


def test_lists_of_spans_may_be_nested_and_have_holes(processor):
    one, two = picture(8, 4, 1), picture(4, 4, 2)
    texts = ["<image> and <image>?", "None?", "<image>?"]
    want = processor(texts, [one, two, one])
    for form in ([[one, two], [], [one]], [(one, two), None, one], ((one, two), (), (one,))):
        assert same(processor(texts, form), want)


def test_padding_and_truncation_are_those_of_tokenizers(processor):
    texts = ["How many birds?", "What?"]
    plain = processor.tokenizer
    bos = plain.bos_token_id
    rows = [[bos, *plain(text, add_special_tokens=False).input_ids] for text in texts]
    longest = max(map(len, rows))
    assert processor(texts).input_ids.shape == (2, longest)
    for padding in ("longest", True, None):
        assert same(processor(texts, padding=padding), processor(texts))
    padded = processor(texts, padding="max_length", max_length=longest + 5)
    assert padded.input_ids.shape == (2, longest + 5)
    assert padded.input_ids[0, -len(rows[0]) :].tolist() == rows[0]
    assert padded.attention_mask.sum(1).tolist() == [len(row) for row in rows]
    right = processor(texts, pad_to_multiple_of=16, padding_side="right")
    assert right.input_ids.shape[1] % 16 == 0
    assert right.input_ids[1, : len(rows[1])].tolist() == rows[1]
    for options in ({"max_length": 3}, {"max_length": 3, "truncation": True}):
        assert processor(texts, **options).input_ids.tolist() == [row[:3] for row in rows]
    kept = processor(texts, max_length=3, truncation=False).input_ids
    assert torch.equal(kept, processor(texts).input_ids)
    fixed = processor(texts, padding="max_length", max_length=4, truncation=True)
    assert fixed.input_ids.shape == (2, 4)
    plain.truncation_side = "left"
    cut = processor(texts[:1], max_length=3).input_ids[0].tolist()
    assert cut == [bos, *rows[0][-2:]]
    plain.truncation_side = "right"
    with pytest.raises(SettingError, match="do not fit in one tensor"):
        processor(texts, padding=False)
    lists = processor(texts, padding=False, return_tensors=None)
    assert lists["input_ids"] == rows
    assert lists["attention_mask"] == [[1] * len(row) for row in rows]
    grouped = {"text_kwargs": {"max_length": 3, "truncation": True}, "common_kwargs": None}
    assert processor(texts, **grouped).input_ids.shape == (2, 3)


def test_truncation_never_cuts_an_image_off(processor):
    text, image = "What is this <image>?", picture(4, 4)
    whole = processor(text, image).input_ids.shape[1]
    assert processor(text, image, max_length=whole - 1).input_ids.shape[1] == whole - 1
    with pytest.raises(DataError, match="max_length=3 cuts an image off"):
        processor(text, image, truncation=True, max_length=3)


def test_tensors_are_returned_in_the_form_asked_for(processor):
    want = processor(["<image> What?", "Why?"], [picture(8, 4)])
    arrays = processor(["<image> What?", "Why?"], [picture(8, 4)], return_tensors="np")
    lists = processor(["<image> What?", "Why?"], [picture(8, 4)], return_tensors=None)
    for name, tensor in want.items():
        assert isinstance(arrays[name], np.ndarray)
        assert isinstance(lists[name], list)
        assert torch.equal(torch.from_numpy(arrays[name]), tensor)
        assert torch.equal(torch.tensor(np.array(lists[name])), tensor)


def test_bos_is_left_out_on_request(processor, monkeypatch):
    bos = processor.tokenizer.bos_token
    with_bos = processor("How many?").input_ids[0].tolist()
    without_bos = processor("How many?", add_special_tokens=False).input_ids[0].tolist()
    assert with_bos[1:] == without_bos
    written = processor(f"{bos}How many?", add_special_tokens=False).input_ids[0].tolist()
    assert written == with_bos
    said = []
    monkeypatch.setattr(get_logger("dpn.model.processing"), "warning_once", said.append)
    prompt = processor.prompt([human("Hi")])
    processor("How many?", add_special_tokens=False)
    assert not said
    processor(prompt, add_special_tokens=False)
    assert "leaves out <s>" in said[0]
    processor.chat_template = bos + processor.chat_template  # as the warning says
    hi = [{"role": "user", "content": "Hi"}]
    rendered = processor.apply_chat_template(hi, add_generation_prompt=True)
    assert same(processor(rendered, add_special_tokens=False), processor(prompt))
    assert len(said) == 1
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    options["processor_kwargs"] = {"add_special_tokens": False}  # as TRL's collator does
    got = processor.apply_chat_template(hi, **options)
    assert same(got, processor(messages=hi))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"return_tensors": "tf"}, "return_tensors='tf' is not supported; use one of 'pt', 'np'"),
        ({"padding": "shortest"}, "padding='shortest' is not supported"),
        ({"truncation": "second"}, "truncation='second' is not supported"),
        ({"padding_side": "top"}, "padding_side='top'"),
        ({"max_length": 0}, "max_length=0 must be"),
        ({"max_length": "big"}, "max_length='big' must be"),
        ({"padding": "max_length"}, "needs a max_length"),
        ({"do_normalize": False}, "do_normalize=False is not supported by this processor"),
        ({"images_kwargs": {"size": {"height": 3}}}, "size="),
        ({"return_offsets_mapping": True}, "return_offsets_mapping=True"),
        ({"image_mean": np.zeros(3)}, "image_mean="),
        ({"typo": 1}, "typo=1 is not supported by this processor; leave it out. It takes add_"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options, sentence, processor):
    with pytest.raises(SettingError, match=sentence):
        processor("Hi", **options)


def test_options_that_change_nothing_are_passed_over(processor):
    options = {"do_rescale": True, "return_token_type_ids": False, "verbose": True, "new": None}
    assert same(processor("Hi", **options, images_kwargs={"do_normalize": True}), processor("Hi"))


@pytest.mark.parametrize("text", [[], [["Hi"]], [3], ""])
def test_texts_that_are_none_are_refused_or_encoded(text, processor):
    if text == "":
        assert processor(text).input_ids.tolist() == [[processor.tokenizer.bos_token_id]]
        return
    with pytest.raises(SettingError, match="needs a prompt, a list of prompts"):
        processor(text)
