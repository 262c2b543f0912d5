"""Tiny Hugging Face VLMs of four layers, samples with one image, and all routers' settings."""

import os
from dataclasses import dataclass
from functools import cache

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers as tf

IMAGE, START, END, OVERVIEW = 100, 102, 103, 104
IDS = {"image_token_id": IMAGE, "video_token_id": 101}
LAYERS = 4


def text(kind, **further):
    """Return a text config whose weights are large enough for differences to show."""
    sizes = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.15,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {"model_type": kind, **sizes, **ids, **further}


def rope(section, **further):
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **further}


TOWER = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2}
CLIP = {
    **TOWER,
    "model_type": "clip_vision_model",
    "num_hidden_layers": 3,
    "image_size": 56,
    "patch_size": 14,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
INTERN = {**TOWER, "num_hidden_layers": 2, "image_size": [56, 56], "patch_size": [14, 14]}
IDEFICS = {**TOWER, "num_hidden_layers": 2, "image_size": 64, "patch_size": 8}
QWEN = {"num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
QWEN2 = {**QWEN, "depth": 2, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14}
QWEN25 = {
    **QWEN,
    **{"depth": 3, "hidden_size": 16, "intermediate_size": 24, "patch_size": 14},
    **{"window_size": 112, "fullatt_block_indexes": [1], "out_hidden_size": 32},
}
QWEN3 = {
    **QWEN,
    **{"depth": 4, "hidden_size": 16, "intermediate_size": 24, "patch_size": 16},
    **{"out_hidden_size": 32, "num_position_embeddings": 64},
    "deepstack_visual_indexes": [0, 1, 2],
}
LLAVA = {"image_token_index": IMAGE, "vision_feature_select_strategy": "default"}
PINPOINTS = {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}
QWEN_IDS = {**IDS, "vision_start_token_id": START, "vision_end_token_id": END}
TILES = {"image_token_id": IMAGE, "scale_factor": 4, "pad_token_id": 0}
OV = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}

#: Start of the classes' names, vision config, text config, further settings.
MODELS = {
    "llava": ("Llava", CLIP, text("llama"), {**LLAVA, "vision_feature_layer": -2}),
    "llava_next": ("LlavaNext", CLIP, text("llama"), {**LLAVA, **PINPOINTS}),
    "llava_onevision": (
        "LlavaOnevision",
        SIGLIP,
        text("qwen2"),
        {"image_token_index": IMAGE, "video_token_index": 101, **PINPOINTS, **OV},
    ),
    "qwen2_vl": (
        "Qwen2VL",
        QWEN2,
        text("qwen2_vl_text", rope_parameters=rope([1, 1, 2])),
        QWEN_IDS,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        QWEN25,
        text("qwen2_5_vl_text", rope_parameters=rope([1, 1, 2])),
        QWEN_IDS,
    ),
    "qwen3_vl": (
        "Qwen3VL",
        QWEN3,
        # Wider queries than the model, as in the checkpoint with 4B parameters.
        text("qwen3_vl_text", head_dim=16, rope_parameters=rope([4, 2, 2], mrope_interleaved=True)),
        QWEN_IDS,
    ),
    "internvl": ("InternVL", INTERN, text("qwen2"), {"image_token_id": IMAGE}),
    "internvl_llama": ("InternVL", INTERN, text("llama"), {"image_token_id": IMAGE}),
    "internvl_qwen3": ("InternVL", INTERN, text("qwen3", head_dim=8), {"image_token_id": IMAGE}),
    "smolvlm": ("SmolVLM", IDEFICS, text("llama"), TILES),
    "idefics3": ("Idefics3", IDEFICS, text("llama"), TILES),
}
FAMILIES = tuple(MODELS)


def build(name, seed=0, **sizes):
    """Create a model in evaluation mode; `sizes` change its text config."""
    start, vision, language, further = MODELS[name]
    config = getattr(tf, f"{start}Config")(
        vision_config=dict(vision), text_config={**language, **sizes}, **further
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(tf, f"{start}ForConditionalGeneration")(config).eval()


@cache
def shared(name):
    """Return the model that all tests of a process share: none may change it."""
    return build(name)


def language(model):
    """Return the text model of a VLM."""
    return getattr(model.model, "text_model", None) or model.model.language_model


@dataclass
class Sample:
    """A prompt with one image.

    Attributes:
        inputs: Arguments of the model.
        blocks: First column, grid and number of newline columns of each block of the image.
    """

    inputs: dict
    blocks: list

    @property
    def visual(self):
        """Columns of the image."""
        return [c for start, (h, w), _ in self.blocks for c in range(start, start + h * w)]


def sample(name, seed=0, size=None, before=3, after=5):
    """Make a sample of random pixels and words.

    Args:
        name: Family.
        seed: Seed.
        size: Tiles (InternVL, Idefics3), grid of patches (Qwen) or pixels (LLaVA-NeXT).
        before: Number of words before the image.
        after: Number of words after the image.
    """
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(5, 90, (before + after,), generator=g).tolist()
    make = next(make for start, make in LAYOUTS.items() if name.startswith(start))
    tensors, parts = make(g, size)
    ids, blocks = [1, *words[:before]], []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            grid, tail = part
            blocks.append((len(ids), grid, tail))
            ids += [IMAGE] * (grid[0] * grid[1])
    inputs = {"input_ids": torch.tensor([ids + words[before:]]), **tensors}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return Sample(inputs, blocks)


def _square(g, size):
    return {"pixel_values": torch.randn(1, 3, 56, 56, generator=g)}, [((4, 4), 0)]


def _anyres(g, size):
    size = size or (100, 60)
    grid = {(100, 60): (8, 4), (112, 112): (8, 8), (60, 100): (4, 8)}[size]  # without padding
    tensors = {
        "pixel_values": torch.randn(1, 5, 3, 56, 56, generator=g),
        "image_sizes": torch.tensor([size]),
    }
    return tensors, [((4, 4), 0), ((grid[0], grid[1] + 1), 1)]


def _qwen(patch):
    def make(g, size):
        height, width = size or (8, 6)
        tensors = {
            "pixel_values": torch.randn(height * width, 3 * 2 * patch**2, generator=g),
            "image_grid_thw": torch.tensor([[1, height, width]]),
        }
        return tensors, [START, ((height // 2, width // 2), 0), END]

    return make


def _intern(g, size):
    tiles = size or 3
    pixels = torch.randn(tiles, 3, 56, 56, generator=g)
    return {"pixel_values": pixels}, [START, *[((2, 2), 0)] * tiles, END]


def _idefics(g, size):
    tiles = size or 4
    tensors = {
        "pixel_values": torch.randn(1, tiles, 3, 64, 64, generator=g),
        "pixel_attention_mask": torch.ones(1, tiles, 64, 64, dtype=torch.bool),
    }
    places = [*range(OVERVIEW + 1, OVERVIEW + tiles), OVERVIEW]
    return tensors, [part for place in places for part in (START, place, ((2, 2), 0))] + [START]


LAYOUTS = {
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "llava": _square,
    "qwen3": _qwen(16),
    "qwen2": _qwen(14),
    "internvl": _intern,
    "smolvlm": _idefics,
    "idefics3": _idefics,
}


def batch(samples):
    """Join samples of one family, padded on the left."""
    width = max(s.inputs["input_ids"].shape[1] for s in samples)
    out = {}
    for key in samples[0].inputs:
        parts = [s.inputs[key] for s in samples]
        if key in ("input_ids", "mm_token_type_ids"):
            parts = [torch.nn.functional.pad(x, (width - x.shape[1], 0)) for x in parts]
        elif parts[0].ndim > 3 and parts[0].shape[0] == 1:  # [1, tiles, ...]
            most = max(x.shape[1] for x in parts)
            parts = [
                torch.cat([x, x.new_zeros(1, most - x.shape[1], *x.shape[2:])], 1) for x in parts
            ]
        out[key] = torch.cat(parts)
    lengths = [s.inputs["input_ids"].shape[1] for s in samples]
    out["attention_mask"] = torch.stack(
        [(torch.arange(width) >= width - n).long() for n in lengths]
    )
    return out


SCORES = [[0.01, 0.2], [0.2, 0.01], [0.01, 0.3], [0.3, 0.2]]
RANKING = {"attention": [1, 3, 0, 2], "ffn": [3, 0, 1, 2]}
#: Settings of every router without weights, for four layers.
ROUTERS = {
    "none": {},
    "static": {"layers": [0, 2], "kernels": [2, 2]},
    "random": {"layers": [0, 2], "min_rows": 1},
    "fastv": {"k": 2, "ratio": 0.4},
    "pyramid_drop": {"layers": [1, 3], "ratio": 0.6},
    "sparsevlm": {"layers": [0, 2], "counts": [0.5, 0.3]},
    "vtw": {"k": 3},
    "aim": {"merge": 0.4, "first": 1, "steps": 2},
    "redundancy_lens": {
        **{"ranking": RANKING, "reduced": 2, "window": 2, "ratio": 0.3, "probe": 2}
    },
    "neighbor_attention": {"radius": 1},
    "head_pruning": {"scores": SCORES, "threshold": 0.1, "keep_layers": 1},
    "sparse_ffn": {"ratio": 3.0, "layers": [0, 1, 3]},
    "layer_drop": {"k": 2},
    "yopo": {"radius": 1, "scores": SCORES, "threshold": 0.1, "ratio": 3.0, "k": 3},
    "chain": {"routers": [{"name": "fastv", "k": 2, "ratio": 0.4}, {"name": "vtw", "k": 3}]},
}


def answered(given, answer):
    """Return a sample's inputs with an answer behind the prompt, and labels that supervise it."""
    inputs = dict(given)
    ids = given["input_ids"]
    inputs["input_ids"] = torch.cat([ids, answer], 1)
    for name in ("mm_token_type_ids", "attention_mask"):
        if name in inputs:
            fill = torch.full_like(answer, int(name == "attention_mask"))
            inputs[name] = torch.cat([inputs[name], fill.to(inputs[name].dtype)], 1)
    inputs["labels"] = torch.cat([torch.full_like(ids, -100), answer], 1)
    return inputs
