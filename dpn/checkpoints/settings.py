"""Convert the `config.json` of a LLaVA folder to sections of a `DPNConfig`.

The original LLaVA and Hugging Face's LLaVA both have the model type `llava`; their keys
distinguish them. The file is read as plain JSON, and nothing that it names is imported.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig

from dpn.checkpoints.containers import Shape
from dpn.checkpoints.image_settings import read_image_settings, unread_files
from dpn.checkpoints.text_models import Node, check_text, original_text
from dpn.checkpoints.tokenizers import tokenization_of
from dpn.common.errors import FileError
from dpn.common.json_files import read_object

#: The tower whose sizes are the defaults of `vision=clip`.
CLIP_L = "clip-vit-large-patch14-336"
#: Settings of CLIP that the tower does not change.
CLIP_SETTINGS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3}
#: Depths, widths and eps of LLaVA-HR's slow towers, from timm's ConvNeXt.
SLOW_TOWERS: dict[str, Node] = {
    "convnext_large_mlp": {
        "slow_depths": [3, 3, 27, 3],
        "slow_dims": [192, 384, 768, 1536],
        "slow_eps": 1e-6,
    },
    "convnext_xxlarge": {
        "slow_depths": [3, 4, 30, 3],
        "slow_dims": [384, 768, 1536, 3072],
        "slow_eps": 1e-5,
    },
}
ROUTERS = {"static": "static", "adaptive": "dpe", "random": "random"}
GATES = {"v1": "mlp", "v2": "linear"}


@dataclass(frozen=True)
class Settings:
    """Sections of a `DPNConfig`, and the arguments of a `DPNProcessor`.

    Attributes:
        text: Config of the language model.
        vision: Vision tower and its arguments.
        projector: Projector and its arguments.
        router: DPN's router and its arguments, or `none`.
        processor: Arguments of the processor, without the tokenizer.
        towers: Names or folders of the vision towers that the weights were trained from.
        notes: Sentences about files of the folder that are not read.
    """

    text: Node
    vision: Node
    projector: Node
    router: Node
    processor: Node
    towers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_settings(
    folder: Path, shapes: Mapping[str, Shape], clip_folders: Sequence[Path] = ()
) -> Settings:
    """Read the config of an original or a Hugging Face LLaVA folder.

    Args:
        folder: Folder with `config.json`.
        shapes: Shapes of the weights by DPN name, for the sizes of a slow tower.
        clip_folders: Folders that may have CLIP's config, searched before the one that the config
            names.

    Raises:
        FileNotFoundError: If there is no config.
        FileError: If it is of another model, or uses an unsupported option.
    """
    file = folder / "config.json"
    config = read_object(file)
    if config is None:
        raise FileNotFoundError(
            f"{folder} holds no config.json, which has the model's sizes; put it there, or give a"
            " DPN folder with the same sizes (tools/convert.py SRC DST --like FOLDER)."
        )
    try:
        if "mm_vision_tower" in config:
            return _original(file, config, shapes, clip_folders)
        if "text_config" in config and "vision_config" in config:
            return _hugging_face(file, config)
    except KeyError as error:
        raise FileError(f"{file} lacks {error}; take the config of the released model.") from error
    except (AttributeError, TypeError) as error:
        raise FileError(
            f"{file} holds a value of a wrong type ({error}); take the config of the released"
            " model."
        ) from error
    raise FileError(
        f"{file} is not a LLaVA config: it has neither mm_vision_tower (original LLaVA) nor"
        " text_config and vision_config (Hugging Face); give a LLaVA, LLaVA-HR or DPN folder."
    )


def _original(
    file: Path, config: Node, shapes: Mapping[str, Shape], clip_folders: Sequence[Path]
) -> Settings:
    if config.get("mm_use_im_start_end") or config.get("mm_use_im_patch_token"):
        raise FileError(
            f"{file} uses mm_use_im_start_end or mm_use_im_patch_token, which are not supported;"
            " every released LLaVA-1.5, LLaVA-HR and DPN has them off."
        )
    feature = config.get("mm_vision_select_feature", "patch")
    _only(file, "mm_vision_select_feature", feature, ("patch",))
    _only(file, "mm_patch_merge_type", config.get("mm_patch_merge_type") or "flat", ("flat",))
    _only(file, "s2", config.get("s2") or False, (False,))
    text = original_text(file, config)
    tower, slow = config["mm_vision_tower"], config.get("vision_tower_slow")
    clip = _clip_sizes(file, [*clip_folders, Path(tower)], tower)
    if config.get("is_multipath_encoder"):
        vision = _multipath(file, config, clip, shapes)
    else:
        vision = {"name": "clip", **clip}
        vision["select_layer"] = config.get("mm_vision_select_layer", -2)
        if size := config.get("input_image_size"):
            vision["image_size"] = size
    router, router_token = _router(file, config.get("pooling"))
    mode = config.get("image_aspect_ratio") or "square"
    _only(file, "image_aspect_ratio", mode, ("pad", "square"))
    projector = _projector(file, config.get("mm_projector_type") or "linear")
    towers = tuple(t for t in (tower, slow) if t)
    image = read_image_settings([*clip_folders, Path(tower)])
    processor = _processor(vision, mode, router_token) | image
    processor["tokenization"] = tokenization_of(file.parent)
    return Settings(text, vision, projector, router, processor, towers)


def _hugging_face(file: Path, config: Node) -> Settings:
    _only(file, "model_type", config.get("model_type", "llava"), ("llava",))
    wanted = {
        "vision_feature_select_strategy": ("default",),
        "projector_hidden_act": ("gelu",),
        "multimodal_projector_bias": (True,),
    }
    for key, allowed in wanted.items():
        _only(file, key, config.get(key, allowed[0]), allowed)
    vision_config = config["vision_config"]
    kind = vision_config.get("model_type", "clip_vision_model")
    _only(file, "vision_config.model_type", kind, ("clip_vision_model",))
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise FileError(
            f"{file} has vision_feature_layer={layer}; only a single layer is supported."
        )
    vision = {"name": "clip", **_clip_arguments(file, vision_config)}
    vision["select_layer"] = layer
    text = check_text(file, {"model_type": "llama", **config["text_config"]})
    if config.get("tie_word_embeddings"):  # Hugging Face ties if either of them says so
        text["tie_word_embeddings"] = True
    # LLaVA was trained on padded images, although Hugging Face's processor crops them.
    processor = _processor(vision, "pad", False) | read_image_settings([file.parent])
    notes = unread_files(file.parent)
    return Settings(text, vision, {"name": "mlp"}, {"name": "none"}, processor, notes=notes)


def _clip_sizes(file: Path, folders: Sequence[Path], tower: str) -> Node:
    """Return CLIP's sizes from the first folder with a config; empty for CLIP-L/336 (defaults)."""
    others = []
    for folder in folders:
        config = (read_object(folder / "config.json") if folder.is_dir() else None) or {}
        if config.get("model_type") in ("clip", "clip_vision_model"):
            return _clip_arguments(folder / "config.json", config.get("vision_config") or config)
        if config and folder == Path(tower):
            others.append(f"{folder} is a {config.get('model_type')} model")
    if Path(tower).name == CLIP_L and not others:
        return {}
    raise FileError(
        f"{file} names the vision tower {tower}, whose sizes are unknown; give the folder of a CLIP"
        f" model, with config.json and weights. Without one only {CLIP_L} is known."
        + "".join(f" {other}, which is not supported." for other in others)
    )


def _clip_arguments(file: Path, config: Node) -> Node:
    try:
        full = CLIPVisionConfig(**{k: v for k, v in config.items() if k != "model_type"})
    except (StrictDataclassError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{file} has an invalid config of CLIP: {reason}") from error
    for key, value in CLIP_SETTINGS.items():
        _only(file, f"vision_config.{key}", getattr(full, key), (value,))
    return {
        "image_size": full.image_size,
        "patch_size": full.patch_size,
        "width": full.hidden_size,
        "depth": full.num_hidden_layers,
        "heads": full.num_attention_heads,
        "ffn_size": full.intermediate_size,
    }


def _multipath(file: Path, config: Node, clip: Node, shapes: Mapping[str, Shape]) -> Node:
    vision = {"name": "clip_convnext", "image_size": config["input_image_size"]}
    for name, value in clip.items():
        vision[f"fast_{name}" if name in ("image_size", "patch_size") else name] = value
    slow = Path(config["vision_tower_slow"]).name.partition(".")[0]
    _only(file, "vision_tower_slow", slow, tuple(SLOW_TOWERS))
    stages = "vision.slow.encoder.stages"
    vision |= SLOW_TOWERS[slow]
    if not any(name.startswith(stages) for name in shapes):
        return vision
    scale = "layer_scale_parameter"
    blocks = [re.fullmatch(rf"{stages}\.(\d)\.layers\.(\d+)\.{scale}", n) for n in shapes]
    places = sorted((int(m[1]), int(m[2])) for m in blocks if m)
    vision["slow_depths"] = [1 + last for last in dict(places).values()]
    vision["slow_dims"] = [shapes[f"{stages}.{s}.layers.0.{scale}"][0] for s in dict(places)]
    return vision


def _projector(file: Path, kind: str) -> Node:
    if kind == "linear":
        return {"name": "mlp", "depth": 1}
    if match := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        return {"name": "mlp", "depth": int(match[1])}
    raise FileError(f"{file} has mm_projector_type={kind!r}; use linear or mlpNx_gelu.")


def _router(file: Path, pooling: Node | None) -> tuple[Node, bool]:
    """Return the router and whether `<ROUTER>` tokens are used; older files lack some keys."""
    if not pooling:
        return {"name": "none"}, False
    kind = pooling["pooling_type"]
    _only(file, "pooling.pooling_type", kind, tuple(ROUTERS))
    _only(file, "pooling.prepooling", bool(pooling.get("prepooling")), (False,))
    places = sorted(pooling["pooling_layers"], key=lambda place: place["index"])
    for place in places:
        if place.get("stride", place["kernel_size"]) != place["kernel_size"]:
            raise FileError(
                f"{file} pools at layer {place['index']} with stride {place['stride']} and kernel"
                f" {place['kernel_size']}; they must be equal."
            )
    router: Node = {
        "name": ROUTERS[kind],
        "layers": [place["index"] for place in places],
        "kernels": [place["kernel_size"] for place in places],
        "reduce": pooling.get("pooling_function", "max"),
        "where": pooling.get("pooling_location", "post"),
    }
    known = ("max", "avg", "conv") if kind == "adaptive" else ("max", "avg")
    _only(file, "pooling.pooling_function", router["reduce"], known)
    if kind != "static":
        router["min_rows"] = "reference"
    token = bool(pooling.get("use_special_token"))
    if kind == "adaptive":
        version = pooling.get("router_version", "v1")
        _only(file, "pooling.router_version", version, tuple(GATES))
        router |= {
            "gate": GATES[version],
            "token": "router" if token else "last",
            "detach": bool(pooling.get("detach_cls_token_to_predict")),
        }
    return router, token


def _processor(vision: Node, mode: str, router_token: bool) -> Node:
    multipath = vision["name"] == "clip_convnext"
    return {
        "template": "v1",
        "image_mode": mode,
        "image_size": vision.get("image_size", 336),
        "patch_size": vision.get("patch_size", 32 if multipath else 14),
        "router_token": router_token,
    }


def _only(file: Path, key: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise FileError(f"{file} has {key}={value!r}; supported: {', '.join(map(repr, allowed))}.")
