"""Table that maps tensor names of other formats to DPN names, read from top to bottom.

Formats are detected by the names of their tensors, never by their config. In DPN names, `{clip}`
stands for the prefix of CLIP in the target's tower and `{predictor}` for that of a gate's last
layer.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dpn.common.errors import FileError


def part_of(name: str) -> str:
    """Return the part of the model that a DPN name belongs to, such as `language`.

    The pieces of a vision tower are separate parts, such as `vision.slow`.
    """
    words = name.split(".")
    return ".".join(words[: 2 if words[0] == "vision" else 1])


@dataclass(frozen=True)
class Rule:
    """One rule for renaming tensors.

    Attributes:
        pattern: Regular expression of the whole name in the file.
        name: DPN name, with references to groups of the pattern; None to drop the tensor.
    """

    pattern: str
    name: str | None


@dataclass(frozen=True)
class Format:
    """Tensor names of one file format.

    Attributes:
        title: Name for messages.
        marks: Regular expressions that detect the format; each must match the start of some name.
        gives: Parts that such a file always contains.
        rules: Renaming rules; the first that matches counts.
    """

    title: str
    marks: tuple[str, ...]
    gives: tuple[str, ...]
    rules: tuple[Rule, ...]


# Any prefix is allowed before the projector, such as `base_model.model.` of LoRA runs.
PROJECTOR = (
    Rule(r"(?:.*\.)?mm_projector\.(weight|bias)", r"projector.layers.0.\1"),  # `linear`
    Rule(r"(?:.*\.)?mm_projector\.(\d+\..+)", r"projector.layers.\1"),
    Rule(r"(?:.*\.)?vision_tower\.align_stages\.0\.(.+)", r"vision.merge.\1"),
)
LLAMA = (
    Rule(r".*\.rotary_emb\.inv_freq", None),
    Rule(r"model\.layers\.(\d+)\.pooling_router\.mlp1\.(.+)", r"router.gates.\1.\2"),
    Rule(
        r"model\.layers\.(\d+)\.pooling_router\.predictor\.(.+)", r"router.gates.\1.{predictor}\2"
    ),
    Rule(r"model\.layers\.(\d+)\.experts\.(\d+)\.weight", r"router.experts.\1.\2"),
    Rule(r"model\.layers\.\d+\.experts\.expert_\d+\..+", None),  # a class that DPN does not use
    Rule(r"model\.((?:embed_tokens|layers|norm)\..+)", r"language.\1"),
    Rule(r"lm_head\.(.+)", r"lm_head.\1"),
)
CLIP = (
    Rule(r".*\bembeddings\.position_ids", None),
    Rule(r"(?:text_model|visual_projection|text_projection)\..+|logit_scale", None),
    Rule(
        r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)",
        r"{clip}.\1",
    ),
)
CONVNEXT = (
    Rule(r"(?:convnext\.)?((?:embeddings|encoder)\..+)", r"vision.slow.\1"),
    Rule(r"(?:convnext\.)?layernorm\..+|classifier\..+", None),
)
_BLOCK = r"stages\.(\d)\.blocks\.(\d+)"
TIMM_CONVNEXT = (
    Rule(r"stem\.0\.(.+)", r"vision.slow.embeddings.patch_embeddings.\1"),
    Rule(r"stem\.1\.(.+)", r"vision.slow.embeddings.layernorm.\1"),
    Rule(
        r"stages\.(\d)\.downsample\.(.+)",
        r"vision.slow.encoder.stages.\1.downsampling_layer.\2",
    ),
    Rule(rf"{_BLOCK}\.conv_dw\.(.+)", r"vision.slow.encoder.stages.\1.layers.\2.dwconv.\3"),
    Rule(rf"{_BLOCK}\.norm\.(.+)", r"vision.slow.encoder.stages.\1.layers.\2.layernorm.\3"),
    Rule(rf"{_BLOCK}\.mlp\.fc([12])\.(.+)", r"vision.slow.encoder.stages.\1.layers.\2.pwconv\3.\4"),
    # LLaVA-HR calls the layer scale `weight`, because Hugging Face used to rename every `gamma`.
    Rule(
        rf"{_BLOCK}\.(?:gamma|weight)",
        r"vision.slow.encoder.stages.\1.layers.\2.layer_scale_parameter",
    ),
    Rule(r"(?:head|norm_pre)\..+", None),
)


def _below(prefix: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules for names that follow a prefix."""
    return tuple(Rule(f"{prefix}(?:{rule.pattern})", rule.name) for rule in rules)


_TOWER = r"model\.vision_tower\."
LLAVA = (
    *_below(rf"{_TOWER}(?:fast_vision_tower\.)?vision_tower\.", CLIP),
    *_below(rf"{_TOWER}slow_vision_tower\.vision_tower\.", TIMM_CONVNEXT),
    Rule(rf"{_TOWER}align_stages_latent\.(\d\..+)", r"vision.adapters.\1"),
    *PROJECTOR,
    *LLAMA,
)
# Files have names without the first `model.`, models in memory since transformers 4.52 have it; see
# also the optional `vision_model.` of CLIP.
HF_LLAVA = (
    Rule(r".*\.rotary_emb\.inv_freq", None),
    Rule(
        r"(?:model\.)?language_model\.(?:model\.)?((?:embed_tokens|layers|norm)\..+)",
        r"language.\1",
    ),
    Rule(r"(?:language_model\.)?lm_head\.(.+)", r"lm_head.\1"),
    Rule(r"(?:model\.)?multi_modal_projector\.linear_1\.(.+)", r"projector.layers.0.\1"),
    Rule(r"(?:model\.)?multi_modal_projector\.linear_2\.(.+)", r"projector.layers.2.\1"),
    *_below(r"(?:model\.)?vision_tower\.", CLIP),
)
_OURS = r"((?:language\.(?:embed_tokens|layers|norm)|projector|vision|router|lm_head)\..+)"

LANGUAGE = ("language", "lm_head")
FORMATS = (
    Format(
        "DPN",  # also inside a Lightning checkpoint
        (r"(?:model\.)?(?:language\.layers|projector\.layers|router\.gates|vision\.\w+\.)",),
        (),
        (Rule(rf"(?:model\.)?{_OURS}", r"\1"),),
    ),
    Format(
        "Hugging Face LLaVA",
        (r"(?:model\.)?language_model\.",),
        ("projector", *LANGUAGE),
        HF_LLAVA,
    ),
    Format(
        "LLaVA-HR",
        (r"model\.layers\.", r"model\.vision_tower\.slow_vision_tower\."),
        ("projector", *LANGUAGE),
        LLAVA,
    ),
    Format("LLaVA", (r"model\.layers\.", r".*mm_projector\."), ("projector", *LANGUAGE), LLAVA),
    Format(
        "LLaVA projector",
        (r"(?:.*\.)?mm_projector\.",),
        ("projector",),
        (*PROJECTOR, Rule(r"(?:.*\.)?embed_tokens\.weight", None)),
    ),
    Format("Llama", (r"model\.layers\.",), LANGUAGE, LLAMA),
    Format("CLIP", (r"(?:vision_model\.)?embeddings\.class_embedding",), (), CLIP),
    Format(
        "Hugging Face ConvNeXt", (r"(?:convnext\.)?embeddings\.patch_embeddings\.",), (), CONVNEXT
    ),
    Format("timm ConvNeXt", (r"stem\.0\.",), (), TIMM_CONVNEXT),
)


def detect(names: Iterable[str]) -> Format:
    """Detect the format of a file from the names of its tensors.

    Raises:
        FileError: If no format of the table matches.
    """
    names = list(names)
    for kind in FORMATS:
        if all(any(re.match(mark, name) for name in names) for mark in kind.marks):
            return kind
    raise FileError(
        f"No known format has tensors named {', '.join(sorted(names)[:3])} ...; known formats are"
        f" {', '.join(kind.title for kind in FORMATS)}."
    )


@dataclass(frozen=True)
class Renamed:
    """Result of renaming the tensors of a file.

    Attributes:
        kind: Detected format.
        ours: DPN names by name in the file.
        dropped: Names that the table drops.
        unknown: Names that no rule matches.
    """

    kind: Format
    ours: Mapping[str, str]
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def gives(self) -> set[str]:
        """Parts that must be complete: those of the format, and any with a tensor in the file."""
        return {*self.kind.gives, *map(part_of, self.ours.values())}


def rename(names: Iterable[str], clip: str = "vision.model") -> Renamed:
    """Detect the format and rename tensors.

    Args:
        names: Names of all tensors of a source.
        clip: Prefix of CLIP in the target's vision tower.

    Raises:
        FileError: If the format is unknown, or two tensors get the same name.
    """
    names = list(names)
    kind = detect(names)
    deep = any(".pooling_router.mlp1." in name for name in names)  # DPN's router_version v1
    places = {"clip": clip, "predictor": "3." if deep else ""}
    ours: dict[str, str] = {}
    dropped, unknown = [], []
    for name in names:
        rule, match = _first(kind.rules, name)
        if rule is None or match is None:
            unknown.append(name)
        elif rule.name is None:
            dropped.append(name)
        else:
            ours[name] = _fill(match.expand(rule.name), places)
    if len(set(ours.values())) < len(ours):
        twice = sorted(name for name in ours if list(ours.values()).count(ours[name]) > 1)
        raise FileError(f"The source has two tensors for the same weight: {', '.join(twice[:4])}.")
    return Renamed(kind, ours, tuple(dropped), tuple(unknown))


def _first(rules: Iterable[Rule], name: str) -> tuple[Rule | None, re.Match[str] | None]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, name):
            return rule, match
    return None, None


def _fill(name: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        name = name.replace(f"{{{place}}}", value)
    return name
