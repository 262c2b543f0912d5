"""Tiny folders in the released formats."""

import json
import shutil

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from dpn import vision
from dpn.checkpoints import read_tokenizer
from tests.checkpoints.conftest import (
    TOWER,
    VOCABULARY,
    as_on_disk,
    as_original,
    clip_config,
    hf_llava,
    text_config,
    write_tokenizer,
)

IMAGE = VOCABULARY + 1
SLOW = {"slow_depths": (1, 1, 2, 1), "slow_dims": (4, 6, 8, 12)}
CLIP_KEYS = "model.vision_tower.vision_tower.vision_model."


def write_shards(folder, state, suffix=".bin", count=2):
    """Write a state dict in shards with their index."""
    names = list(state)
    save = torch.save if suffix == ".bin" else save_file
    stem = "pytorch_model" if suffix == ".bin" else "model"
    places = {}
    for i in range(count):
        file = f"{stem}-{i + 1:05}-of-{count:05}{suffix}"
        own = names[i * len(names) // count : (i + 1) * len(names) // count]
        save({name: state[name] for name in own}, folder / file)
        places |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def write_config(folder, **changes):
    """Return an original config.json."""
    text = text_config().to_dict()
    config = {k: v for k, v in text.items() if k not in ("model_type", "rope_parameters")}
    config |= {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "rope_theta": 10000.0,
        "mm_vision_tower": str(folder / "clip"),
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": TOWER["width"],
        "mm_vision_select_layer": -2,
        "image_aspect_ratio": "pad",
    }
    (folder / "config.json").write_text(json.dumps(config | changes))


def write_clip(folder, state):
    """Hugging Face's CLIP folder, as whole as OpenAI's."""
    folder.mkdir()
    sizes = clip_config().to_dict()
    config = {"model_type": "clip", "vision_config": sizes, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"vision_model.{k}": v for k, v in state.items()}
    extra = {"logit_scale": torch.ones(()), "text_model.final_layer_norm.bias": torch.ones(2)}
    save_file(weights | extra, folder / "model.safetensors")


def write_llava(folder, tower=True, added=(), **changes):
    """Original LLaVA; with `tower=False` CLIP lies in a folder of its own. Returns all weights by
    Hugging Face's names.
    """
    write_tokenizer(folder, added)
    state = hf_llava(VOCABULARY + len(added), VOCABULARY - 1).state_dict()
    prefix = "model.vision_tower."
    clip = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if tower:  # what lies beside must not count
        clip = {k: torch.zeros_like(v) for k, v in clip.items()}
    write_clip(folder / "clip", clip)
    write_config(folder, **changes)
    named = as_original(state)
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if not tower:
        named = {k: v for k, v in named.items() if not k.startswith(CLIP_KEYS)}
    write_shards(folder, named)
    return state


def write_hf_llava(folder):
    """Write a Hugging Face folder with `<image>`, `<pad>` and padding entries."""
    write_tokenizer(folder, ["<image>", "<pad>"])
    model = hf_llava(VOCABULARY + 24, VOCABULARY)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    write_shards(folder, as_on_disk(model.state_dict()), ".safetensors")
    return model


def hr_tower():
    """Return LLaVA-HR's tower with weights that all have an effect."""
    torch.manual_seed(3)
    sizes = {k: v for k, v in TOWER.items() if k not in ("image_size", "patch_size")}
    fast = {"fast_image_size": TOWER["image_size"], "fast_patch_size": TOWER["patch_size"]}
    tower = vision.build("clip_convnext", image_size=128, **sizes, **fast, **SLOW).eval()
    with torch.no_grad():
        for p in tower.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return tower


def hr_names(tower):
    """Return the tower's weights under LLaVA-HR's names, written by hand."""
    slow = {
        "embeddings.patch_embeddings": "stem.0",
        "embeddings.layernorm": "stem.1",
        "encoder.": "",
        "downsampling_layer": "downsample",
        "layers": "blocks",
        "dwconv": "conv_dw",
        "layernorm": "norm",
        "pwconv": "mlp.fc",
        "layer_scale_parameter": "weight",
    }
    named = {}
    for name, tensor in tower.state_dict().items():
        part, _, rest = name.partition(".")
        if name.startswith("slow.layernorm"):
            continue
        if part == "slow":
            for ours, theirs in slow.items():
                rest = rest.replace(ours, theirs)
        place = {
            "fast": "fast_vision_tower.vision_tower.vision_model",
            "slow": "slow_vision_tower.vision_tower",
            "adapters": "align_stages_latent",
            "merge": "align_stages.0",
        }[part]
        named[f"model.vision_tower.{place}.{rest}"] = tensor
    named["model.vision_tower.slow_vision_tower.vision_tower.head.fc.bias"] = torch.ones(3)
    return named


#: The chat template of Hugging Face's LLaVA-1.5.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def save_hf_llava(folder, side=56):
    """Let transformers itself save a LLaVA with its processor; return the model."""
    write_tokenizer(folder / "words", ["<image>", "<pad>"])
    tokenizer = read_tokenizer(folder / "words")
    shutil.rmtree(folder / "words")
    sizes = clip_config().to_dict() | {"image_size": side}
    text = text_config(VOCABULARY + 24)
    text.max_position_embeddings = 512
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=text,
            vision_config=CLIPVisionConfig(**sizes),
            image_token_index=VOCABULARY,
            image_seq_length=(side // TOWER["patch_size"]) ** 2,
        )
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=TOWER["patch_size"],
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return model
