"""Tiny random Hugging Face VLMs of every model type that `dpn.compress` supports; batches for them
come from `tests.vlm_batches`.
"""

import os
from functools import cache

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers as tf

from tests.vlm_batches import END, IMAGE, PAD, START, TILE, VIDEO, Clip, Picture, batch

__all__ = ["NAMES", "VIDEO_NAMES", "Clip", "Picture", "batch", "build", "language", "model"]

PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]


def _text(kind="llama", **further):
    sizes = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.08,  # large enough for differences to show
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
    return {"model_type": kind, **sizes, **ids, **further}


def _rope(section, **further):
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **further}


def _tower(kind, **further):
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3}
    return {"model_type": kind, **sizes, "num_attention_heads": 2, **further}


_CLIP = _tower("clip_vision_model", image_size=TILE, patch_size=14)
_SIGLIP = _tower("siglip_vision_model", image_size=TILE, patch_size=14, vision_use_head=False)
_SHUFFLED = {"image_size": [TILE, TILE], "patch_size": [14, 14]}
_IDEFICS = {**_tower("idefics3_vision"), "image_size": 64, "patch_size": 8}
_QWEN = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
_QWEN_IDS = {**_IDS, "vision_start_token_id": START, "vision_end_token_id": END}
_LLAVA = {"image_token_index": IMAGE, "vision_feature_select_strategy": "default"}
_NEXT = {**_LLAVA, "image_grid_pinpoints": PINPOINTS, "vision_feature_layer": -2}
_QWEN25 = {
    **_QWEN,
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 32,
}
_QWEN3 = {
    **_QWEN,
    "depth": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "patch_size": 16,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
}

#: For each model: start of its classes' names, vision config, text config and further settings.
_MODELS = {
    "llava": ("Llava", _CLIP, _text(), {**_LLAVA, "vision_feature_layer": -2}),
    "vipllava": (
        "VipLlava",
        _CLIP,
        _text(),
        {"image_token_index": IMAGE, "vision_feature_layers": [-1, -2]},
    ),
    "llava_next": ("LlavaNext", _CLIP, _text("mistral", sliding_window=None), _NEXT),
    "llava_next_video": (
        "LlavaNextVideo",
        _CLIP,
        _text(),
        {**_NEXT, "video_token_index": VIDEO},
    ),
    "llava_onevision": (
        "LlavaOnevision",
        _SIGLIP,
        _text("qwen2"),
        {
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
            "image_grid_pinpoints": [[56, 56], *PINPOINTS],
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_2",
        },
    ),
    "qwen2_vl": (
        "Qwen2VL",
        {**_QWEN, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        _text("qwen2_vl_text", rope_parameters=_rope([1, 1, 2])),
        _QWEN_IDS,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        _QWEN25,
        _text("qwen2_5_vl_text", rope_parameters=_rope([1, 1, 2])),
        _QWEN_IDS,
    ),
    "qwen3_vl": (
        "Qwen3VL",
        _QWEN3,
        _text(
            "qwen3_vl_text", head_dim=8, rope_parameters=_rope([2, 1, 1], mrope_interleaved=True)
        ),
        _QWEN_IDS,
    ),
    **{
        name: ("InternVL", _tower("internvl_vision", **_SHUFFLED), text, {"image_token_id": IMAGE})
        for name, text in {
            "internvl": _text("qwen2"),
            "internvl_llama": _text(),
            "internvl_qwen3": _text("qwen3", head_dim=8),
        }.items()
    },
    "smolvlm": (
        "SmolVLM",
        {**_IDEFICS, "model_type": "smolvlm_vision"},
        _text(),
        {"image_token_id": IMAGE, "scale_factor": 4, "pad_token_id": PAD},
    ),
    "idefics3": (
        "Idefics3",
        _IDEFICS,
        _text(),
        {"image_token_id": IMAGE, "scale_factor": 4, "pad_token_id": PAD},
    ),
}
NAMES = tuple(_MODELS)
#: Models that read videos; InternVL reads their frames as images.
VIDEO_NAMES = (
    "llava_next_video",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
)


def build(name, **text):
    """Create a model in evaluation mode; `text` changes settings of its text model."""
    start, vision, language, further = _MODELS[name]
    config = getattr(tf, f"{start}Config")(
        vision_config=dict(vision), text_config={**language, **text}, **further
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(tf, f"{start}ForConditionalGeneration")(config)
    return model.eval()


@cache
def model(name):
    """Return the model that all tests of a process share: none may change it."""
    return build(name)


def language(vlm):
    """Return the text model of a VLM."""
    return getattr(vlm.model, "text_model", None) or vlm.model.language_model
