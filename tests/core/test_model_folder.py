"""A damaged model folder is refused by a sentence that names what is wrong."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpn import DPNConfig, DPNForConditionalGeneration, DPNProcessor, inference
from dpn.common.errors import DPNError, FileError
from tests.talkers import make_talker

from .conftest import make_model

DPE = {"name": "dpe", "layers": [0, 2], "min_rows": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model(DPE).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def drop(name):
    return lambda weights: weights.pop(name)


def rename(name, to):
    return lambda weights: weights.update({to: weights.pop(name)})


def replace(name, value):
    return lambda weights: weights.update({name: value})


NORM, GATE = "language.norm.weight", "router.gates.0"
WEIGHTS = {
    "lacking": (drop(NORM), f"lacks the weights {NORM}"),
    "lacking a layer": (
        lambda weights: [weights.pop(n) for n in [*weights] if n.startswith("language.layers.1.")],
        r"lacks the weights language\.layers\.1\..* and \d+ more",
    ),
    "misnamed": (rename(NORM, "language.nrom.weight"), r"nrom\.weight"),
    "unknown": (replace("language.more", torch.ones(2)), r"does not have: language\.more"),
    "another shape": (replace(NORM, torch.ones(7)), r"norm\.weight is \[7\], expected \[32\]"),
    "empty": (replace(NORM, torch.ones(0)), "ZeRO stage 3"),
    "nan": (replace(NORM, torch.full((32,), torch.nan)), f"NaN or infinite values: {NORM}"),
    "infinite": (replace(NORM, torch.full((32,), -torch.inf)), f"infinite values: {NORM}"),
    "router": (
        lambda weights: [weights.pop(n) for n in [*weights] if n.startswith("router")],
        r"lacks the weights router\.",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fill_the_model_are_refused_by_name(case, folder):
    change, sentence = WEIGHTS[case]
    change_weights(folder, change)
    with pytest.raises(FileError, match=sentence):
        DPNForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("cut", [0, 5, 200, -100])
def test_a_damaged_file_of_weights_is_refused(cut, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises((FileError, OSError), match=r"damaged|model\.safetensors"):
        DPNForConditionalGeneration.from_pretrained(folder)


def test_a_replaced_router_may_lack_weights(folder, caplog):
    DPNForConditionalGeneration.from_pretrained(folder, router_config={"name": "none"})
    assert "weights of replaced parts are not used: router." in caplog.text
    caplog.clear()
    change_weights(folder, WEIGHTS["router"][0])
    with pytest.raises(FileError, match="router"):
        DPNForConditionalGeneration.from_pretrained(folder)
    for router in ({"name": "none"}, DPE | {"gate": "linear"}):
        model = DPNForConditionalGeneration.from_pretrained(folder, router_config=router)
        assert model.config.router_config == router
    assert "weights of replaced parts are initialised anew: router." in caplog.text
    change_weights(folder, drop(NORM))
    with pytest.raises(FileError, match=NORM):
        DPNForConditionalGeneration.from_pretrained(folder, router_config=router)


CONFIGS = {
    "another model": ({"model_type": "llava"}, r"model_type='llava', expected 'dpn_llava'"),
    "no model type": ({"model_type": None}, "model_type=None"),
    "text is a word": ({"text_config": "llama"}, "text_config that is not an object"),
    "text is a list": ({"text_config": []}, "text_config that is not an object"),
    "vision is a number": ({"vision_config": 3}, "vision_config that is not an object"),
    "no name": ({"router_config": {"layers": [0]}}, "router_config without a name"),
    "unknown router": ({"router_config": {"name": "nope"}}, "nope"),
    "unknown argument": ({"router_config": {"name": "dpe", "bogus": 1}}, "bogus"),
    "wrong argument": ({"vision_config": {"name": "vit", "width": "wide"}}, "vision.width=wide"),
    "wrong router value": (
        {"router_config": {"name": "dpe", "min_rows": []}},
        r"router.min_rows=\[\]` has the wrong type; expected a whole number",
    ),
    "router value out of range": (
        {"router_config": {"name": "fastv", "ratio": 1.5}},
        "router.ratio=1.5` is not possible; it must be at least 0 and at most 1",
    ),
    "image token": ({"image_token_id": "x"}, r"image_token_id='x'"),
    "text type": ({"text_config": {"model_type": "nope"}}, "nope"),
    "text size": ({"text_config": {"model_type": "llama", "hidden_size": "big"}}, "hidden_size"),
    "deep text": (
        {"text_config": {"model_type": "qwen2", "num_hidden_layers": 99999999999999999999}},
        r"num_hidden_layers=99999999999999999999 is too large; the largest is 1024",
    ),
    "deep tower": ({"vision_config": {"name": "vit", "depth": 10**9}}, "depth=1000000000 is too"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_invalid_config_is_refused_by_name(case, folder):
    values, sentence = CONFIGS[case]
    change_config(folder, **values)
    with pytest.raises(DPNError, match=sentence) as caught:
        DPNForConditionalGeneration.from_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "null", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises((FileError, OSError), match=r"config\.json"):
        DPNForConditionalGeneration.from_pretrained(folder)
    with pytest.raises((FileError, OSError), match=r"config\.json"):
        DPNConfig.from_pretrained(folder)


def test_no_kernel_is_fetched_for_a_folder(folder, monkeypatch):
    """transformers would fetch `org/kernel` from the Hub and run it."""
    from transformers import modeling_utils

    fetched = []
    monkeypatch.setattr(
        modeling_utils, "lazy_import_flash_attention", lambda *a, **k: fetched.append(a)
    )
    text = json.loads((folder / "config.json").read_text())["text_config"]
    keys = {"attn_implementation": "org/kernel", "_attn_implementation": "org/kernel"}
    change_config(folder, text_config=text | keys, **keys)
    model = DPNForConditionalGeneration.from_pretrained(folder)
    assert model.config._attn_implementation != "org/kernel"
    assert model.config.text_config._attn_implementation != "org/kernel"
    assert not fetched
    with contextlib.suppress(DPNError):  # the caller may ask for it, and the spy sees it
        DPNForConditionalGeneration.from_pretrained(folder, attn_implementation="org/kernel")
    assert fetched


HUGE = json.dumps({"image_mean": [10**400, 0.5, 0.5]})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("processor_config.json", "{"),
        ("processor_config.json", "[1]"),
        ("processor_config.json", '{"image_size": "big"}'),
        ("processor_config.json", '{"image_mean": [0.5]}'),
        pytest.param("processor_config.json", HUGE, id="a number that no float holds"),
        ("tokenizer_config.json", '{"bos_token": "", "eos_token": "</s>"}'),
        ("processor_config.json", '{"image_size": 15, "patch_size": 4}'),
        ("processor_config.json", '{"template": 3}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
    ],
)
def test_a_damaged_processor_is_refused(file, content, tmp_path):
    model, processor = make_talker()
    inference.save(model, processor, tmp_path / "model")
    (tmp_path / "model" / file).write_text(content)
    with pytest.raises((DPNError, OSError), match=str(tmp_path)):
        DPNProcessor.from_pretrained(tmp_path / "model")


def test_an_adapter_does_not_lead_to_another_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/model"}')
    with pytest.raises(FileError, match="holds an adapter"):
        DPNForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"max_length": "long"}', '{"eos_token_id": {}}', "3"])
def test_a_damaged_generation_config_is_refused_or_left_out(text, folder):
    """As in Hugging Face, a file that is not JSON counts as missing."""
    (folder / "generation_config.json").write_text(text)
    model, sentence = None, ""
    try:
        model = DPNForConditionalGeneration.from_pretrained(folder)
    except DPNError as error:
        sentence = str(error)
    if model is None:
        assert str(folder) in sentence
    else:
        assert torch.isfinite(model(input_ids=torch.tensor([[3, 4]])).logits).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"suppress_tokens": "x"}, "suppress_tokens='x' is not possible; it must be a list"),
        ({"suppress_tokens": [1, None]}, r"suppress_tokens=\[1, None\] is not possible"),
        ({"bos_token_id": 2**63}, "bos_token_id=9223372036854775808 is not possible"),
        ({"eos_token_id": [2, "</s>"]}, "eos_token_id=.* a token id or a list of them"),
        ({"eos_token_id": True}, "eos_token_id=True"),
        ({"temperature": "hot"}, "temperature='hot' is not possible; it must be a number"),
        ({"num_beams": 0}, "num_beams=0 is not possible; it must be a whole number, at least 1"),
        ({"use_cache": "no"}, "use_cache='no' is not possible; it must be true or false"),
    ],
)
def test_generation_settings_of_another_type_are_refused(settings, sentence, folder):
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(FileError, match=sentence) as caught:
        DPNForConditionalGeneration.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_no_answer_holds_an_image_whatever_the_folder_says(folder):
    (folder / "generation_config.json").write_text("{}")
    model = DPNForConditionalGeneration.from_pretrained(folder)
    assert model.config.image_token_id in model.generation_config.suppress_tokens


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    model, processor = make_talker()
    inference.save(model, processor, tmp_path)
    inference.load(tmp_path, "cpu")
    change_config(tmp_path, image_token_id=7)
    with pytest.raises(DPNError, match="image_token_id=7, and in the tokenizer it is"):
        inference.load(tmp_path, "cpu")
    change_config(tmp_path, image_token_id=processor.image_token_id)
    processor.tokenizer.add_tokens(["new", "newer"])
    processor.save_pretrained(tmp_path)
    with pytest.raises(DPNError, match=r"the tokenizer has ids up to .*, and the model .* embed"):
        inference.load(tmp_path, "cpu")
