"""LLaVA folders on other text models and with other settings: the converted model computes the
logits of Hugging Face's, or the folder is refused with the name of what is not supported.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from dpn import DPNForConditionalGeneration, DPNProcessor
from dpn.checkpoints import convert
from dpn.checkpoints.settings import read_settings
from dpn.checkpoints.text_models import TEXT_MODELS
from dpn.common.errors import DPNError
from tests.checkpoints.conftest import VOCABULARY, as_original, clip_config, write_tokenizer
from tests.checkpoints.folders import write_config, write_llava, write_shards

SIZES = {
    "vocab_size": VOCABULARY + 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NO_WINDOW = {"sliding_window": None}
SETTINGS = {"mistral": NO_WINDOW, "qwen3": {"head_dim": 8}}


def write(folder, kind, **settings):
    """Write a folder as Hugging Face does; return its model."""
    torch.manual_seed(0)
    text = AutoConfig.for_model(kind, **SIZES | SETTINGS.get(kind, {}) | settings)
    config = LlavaConfig(
        text_config=text,
        vision_config=clip_config(),
        image_token_index=VOCABULARY,
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    write_tokenizer(folder, ["<image>", "<pad>"])
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder on Llama and its model."""
    folder = tmp_path_factory.mktemp("llama") / "hf"
    return folder, write(folder, "llama")


@pytest.fixture
def llama(written, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(written[0], tmp_path / "hf")


def edit(file, **changes):
    value = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(value | changes))


@torch.no_grad()
def check(folder, theirs, tmp_path):
    """Convert a folder and compare the logits; return the report and the processor."""
    (report,) = convert(folder, tmp_path / "ours")
    model = DPNForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    ids = torch.tensor([[1, *[VOCABULARY] * 4, 30, 31, 32, 33]])
    short = torch.tensor([[1, VOCABULARY, 30, 31, 32, 33]])
    pixels = torch.randn(1, 3, 28, 28)
    want = theirs(input_ids=ids, pixel_values=pixels, attention_mask=ids).logits
    got = model(input_ids=short, pixel_values=pixels).logits
    torch.testing.assert_close(got[:, 1:], want[:, 4:, : VOCABULARY + 2], atol=1e-4, rtol=1e-4)
    return report, DPNProcessor.from_pretrained(tmp_path / "ours")


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_supported_text_models_have_the_logits_of_hugging_face(kind, tmp_path):
    check(tmp_path / "hf", write(tmp_path / "hf", kind), tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {"sliding_window": 64, "max_position_embeddings": 64}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_settings_of_text_models(kind, settings, tmp_path):
    check(tmp_path / "hf", write(tmp_path / "hf", kind, **settings), tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("gemma", {}, "names the text model gemma, which is not supported; supported are llama"),
        ("gemma2", {}, "the text model gemma2"),
        ("cohere", {}, "the text model cohere"),
        ("granite", {}, "the text model granite"),
        ("phi", {}, "the text model phi"),
        ("gpt_neox", {}, "the text model gpt_neox"),
        ("mixtral", NO_WINDOW, "the text model mixtral"),
        ("mistral", {"sliding_window": 4}, "has sliding_window=4, shorter than max_position"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "has sliding_window=4",
        ),
    ],
)
def test_other_text_models_are_refused_by_name(kind, settings, sentence, llama, tmp_path):
    text = AutoConfig.for_model(kind, **SIZES | settings).to_dict()
    edit(llama / "config.json", text_config=text)
    with pytest.raises(DPNError, match=sentence):
        convert(llama, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_text_tensor_without_a_place_ends_the_conversion(tmp_path):
    """Weights of Qwen2 under a config of Llama, which has no biases."""
    text = write(tmp_path / "hf", "qwen2").config.text_config.to_dict()
    edit(tmp_path / "hf" / "config.json", text_config=text | {"model_type": "llama"})
    with pytest.raises(DPNError, match=r"has no place for, .*q_proj\.bias"):
        convert(tmp_path / "hf", tmp_path / "ours")


@pytest.mark.parametrize("name", ["language_model.model.layers.0.extra", "model.bonus.weight"])
def test_an_unknown_tensor_ends_the_conversion(name, llama, tmp_path):
    file = llama / "model.safetensors"
    save_file(load_file(file) | {name: torch.ones(2)}, file)
    with pytest.raises(DPNError, match=f"(no known part of a LLaVA|has no place for), {name}"):
        convert(tmp_path / "hf", tmp_path / "ours")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("lm_head", torch.nan),
        ("vision_tower", torch.inf),
        ("multi_modal_projector", -torch.inf),
    ],
)
def test_weights_that_are_no_numbers_end_the_conversion(part, value, llama, tmp_path):
    file = llama / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if part in n)
    weights[name].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DPNError, match=r"model\.safetensors holds NaN or infinity in "):
        convert(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_end_the_conversion(dtype, llama, tmp_path):
    file = llama / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if "q_proj" in n)
    save_file(weights | {name: weights[name].to(dtype)}, file, metadata={"format": "pt"})
    with pytest.raises(DPNError, match="quantised weights are not supported"):
        convert(tmp_path / "hf", tmp_path / "ours")


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_an_original_llava_on_qwen2_keeps_its_biases(tied, tmp_path):
    theirs = write(tmp_path / "hf", "qwen2", vocab_size=VOCABULARY, tie_word_embeddings=tied)
    sizes = theirs.config.text_config.to_dict()
    write_llava(tmp_path / "llava", **{"architectures": ["LlavaQwenForCausalLM"]})
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    config |= {k: v for k, v in sizes.items() if k not in ("model_type", "architectures", "dtype")}
    (tmp_path / "llava" / "config.json").write_text(json.dumps(config))
    named = as_original(dict(theirs.state_dict()))
    write_shards(tmp_path / "llava", {n: t.clone() for n, t in named.items()})
    convert(tmp_path / "llava", tmp_path / "ours")
    model = DPNForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    ids = torch.tensor([[1, 30, 31, 32, 33]])
    want = theirs(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits[..., :VOCABULARY], want)


def test_what_a_folder_says_about_images_is_read_and_what_is_not_used_is_named(
    written, llama, tmp_path
):
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    edit(tmp_path / "hf" / "preprocessor_config.json", do_center_crop=True, **statistics)
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages }}")
    edit(tmp_path / "hf" / "generation_config.json", eos_token_id=[2, 5])
    report, processor = check(llama, written[1], tmp_path)
    assert processor.to_dict().items() >= statistics.items()
    for named in ("chat_template.jinja is not used", "crops images", "ends answers at any of [2"):
        assert named in str(report)


def test_the_image_processor_inside_a_processor_config(written, llama, tmp_path):
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    edit(tmp_path / "hf" / "processor_config.json", image_processor=statistics)
    _, processor = check(llama, written[1], tmp_path)
    assert processor.to_dict().items() >= statistics.items()


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize=False; only True"),
        ("preprocessor_config.json", {"resample": 2}, "resample=2; only 3 is supported"),
        ("preprocessor_config.json", {"image_std": [1, 1]}, "it must be three numbers"),
        ("preprocessor_config.json", {"image_std": [1, 0, 1]}, "it must be three numbers"),
        ("config.json", {"vision_config": {"model_type": "siglip_vision_model"}}, "='siglip_"),
        ("config.json", {"vision_config": {"layer_norm_eps": 1e-3}}, "layer_norm_eps=0.001"),
        ("config.json", {"vision_config": {"hidden_size": "x"}}, "invalid config of CLIP"),
        ("config.json", {"text_config": {"hidden_size": "x"}}, "invalid text config"),
        ("config.json", {"text_config": {"model_type": "nothing"}}, "the text model nothing"),
        ("config.json", {"model_type": "llava_next"}, "model_type='llava_next'; supported: 'lla"),
        ("config.json", {"text_config": []}, "a value of a wrong type"),
        ("config.json", {"vision_config": None}, "a value of a wrong type"),
    ],
)
def test_settings_that_do_not_fit_are_refused(file, changes, sentence, llama, tmp_path):
    edit(tmp_path / "hf" / "preprocessor_config.json", image_mean=[0.1] * 3, image_std=[0.5] * 3)
    edit(tmp_path / "hf" / file, **changes)
    with pytest.raises(DPNError, match=sentence):
        convert(tmp_path / "hf", tmp_path / "ours")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["LlavaGemmaForCausalLM"]}, "the text model LlavaGemmaForCausalLM"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "the text model LlavaMptForCausalLM"),
        ({"architectures": None, "model_type": "llava_gemma"}, "the text model llava_gemma"),
        ({"architectures": ["Strange"]}, "the text model Strange"),
        ({"s2": True}, "s2=True"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type='spatial_unpad'"),
        ({"mm_vision_tower": None}, "a value of a wrong type"),
        ({"mm_vision_tower": "google/siglip-so400m"}, "whose sizes are unknown"),
        (
            {"architectures": ["LlavaMistralForCausalLM"], "sliding_window": 16},
            "has sliding_window=16",
        ),
    ],
)
def test_original_folders_that_do_not_fit_are_refused(changes, sentence, tmp_path):
    write_config(tmp_path, **changes)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps(clip_config().to_dict()))
    with pytest.raises(DPNError, match=sentence):
        read_settings(tmp_path, {})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "llama"),
        ({"architectures": None, "model_type": "llava_llama"}, "llama"),
        ({"architectures": ["LlavaMistralForCausalLM"], **NO_WINDOW}, "mistral"),
    ],
)
def test_original_folders_have_the_text_model_that_they_name(changes, kind, tmp_path):
    write_llava(tmp_path / "llava", **changes)
    convert(tmp_path / "llava", tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["text_config"]["model_type"] == kind


def test_a_vision_tower_of_another_kind_is_named(tmp_path):
    write_config(tmp_path)
    (tmp_path / "clip").mkdir()
    edit(tmp_path / "clip" / "config.json", model_type="siglip")
    with pytest.raises(DPNError, match="clip is a siglip model, which is not supported"):
        read_settings(tmp_path, {})


@pytest.mark.parametrize("text", ["", "[1]", '{"a": ' * 50_000])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_damaged_json_is_a_sentence(file, text, llama, tmp_path):
    (llama / file).write_text(text)
    with pytest.raises(DPNError, match=file):
        convert(tmp_path / "hf", tmp_path / "ours")
