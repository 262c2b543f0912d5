"""Tiny checkpoints in the real formats, with names written by hand as in the specification."""

import io
import json
from functools import cache

import pytest
import sentencepiece
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

WIDTH, LAYERS, VOCABULARY = 32, 4, 340
TOWER = {"image_size": 28, "patch_size": 14, "width": 24, "depth": 4, "heads": 2, "ffn_size": 40}
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What is this? ASSISTANT: a cat and 12 birds",
    "The quick brown fox jumps over the lazy dog\nhello world",
]


def text_config(rows=VOCABULARY):
    """Config of the tiny language model."""
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def clip_config():
    """Config of the tiny tower."""
    return CLIPVisionConfig(
        hidden_size=TOWER["width"],
        intermediate_size=TOWER["ffn_size"],
        num_hidden_layers=TOWER["depth"],
        num_attention_heads=TOWER["heads"],
        image_size=TOWER["image_size"],
        patch_size=TOWER["patch_size"],
    )


def hf_llava(rows=VOCABULARY, image_token=VOCABULARY - 1, seed=0):
    """Hugging Face's LLaVA with weights large enough for differences to show."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        text_config=text_config(rows),
        vision_config=clip_config(),
        image_token_index=image_token,
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for _name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def as_original(state):
    """Hugging Face's names in memory to LLaVA's."""
    names = {
        "model.language_model.": "model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "lm_head.": "lm_head.",
    }
    return _renamed(state, names)


def as_on_disk(state):
    """Hugging Face's names in memory to those it has always written."""
    names = {
        "model.language_model.": "language_model.model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "lm_head.": "language_model.lm_head.",
    }
    return _renamed(state, names)


def as_ours(state):
    """Hugging Face's names in memory to ours."""
    names = {
        "model.language_model.": "language.",
        "model.multi_modal_projector.linear_1.": "projector.layers.0.",
        "model.multi_modal_projector.linear_2.": "projector.layers.2.",
        "model.vision_tower.": "vision.model.",
        "lm_head.": "lm_head.",
    }
    return _renamed(state, names)


def _renamed(state, names):
    out = {}
    for name, tensor in state.items():
        (old,) = (prefix for prefix in names if name.startswith(prefix))
        out[names[old] + name.removeprefix(old)] = tensor
    assert len(out) == len(state)
    return out


@cache
def trained_pieces():
    """Bytes of a sentencepiece model of the corpus."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 8),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def write_tokenizer(folder, added=(), legacy=None):
    """Llama's files: a real sentencepiece model, without tokenizer.json; the ids of the pieces."""
    model = trained_pieces()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048, **special}
    settings |= {"padding_side": "right"} | ({} if legacy is None else {"legacy": legacy})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    extra = {"additional_special_tokens": list(added)} if added else {}
    (folder / "special_tokens_map.json").write_text(json.dumps(special | extra))
    if added:
        ids = {token: VOCABULARY + i for i, token in enumerate(added)}
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)
