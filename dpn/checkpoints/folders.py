"""Whole models in folders of any known family: their sizes, and the models themselves.

A new family is one entry of `FAMILIES`: two functions for the `model_type` of its `config.json`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from dpn.checkpoints.containers import Shape
from dpn.checkpoints.conversion import recipe_of
from dpn.checkpoints.keys import part_of
from dpn.checkpoints.loading import WeightSource, clip_place, load, plan
from dpn.checkpoints.settings import Node, Settings, read_settings
from dpn.checkpoints.tokenizers import has_tokenizer, read_tokenizer
from dpn.checkpoints.vocabulary import TABLES
from dpn.common.errors import DPNError
from dpn.common.files import read_json
from dpn.common.text import one_line
from dpn.model import DPNConfig, DPNForConditionalGeneration, DPNProcessor

#: What every chat template of LLaVA-1.5 writes before an answer.
CUE = "ASSISTANT:"
Loaded = tuple[DPNForConditionalGeneration, DPNProcessor]


class FolderError(DPNError, ValueError):
    """A folder holds no model that can be used, or does not fit; the message names the folder."""


@dataclass(frozen=True)
class Family:
    """A kind of model folder that commands take as it is.

    Attributes:
        title: Name for messages.
        settings: Function that reads the sizes of a folder from its small files; None if a folder
            need not have all of them.
        load: Function that loads the model of a folder, in the precision of its weights, and its
            processor.
    """

    title: str
    settings: Callable[[Path], Settings] | None
    load: Callable[[Path], Loaded]


def holds_model(folder: Path) -> bool:
    """Whether a path is a folder with the config of a model."""
    return (folder / "config.json").is_file()


def model_settings(folder: Path) -> Settings | None:
    """Read the sizes of a model folder, whose weights need not be there yet.

    Returns:
        Its sizes; None if the family does not promise that a folder has all of them.

    Raises:
        FolderError: If the folder holds no model of a known family, or uses an unsupported option.
    """
    family = family_of(folder)
    if family.settings is None:
        return None
    if not has_tokenizer(folder):
        raise FolderError(
            f"{folder} holds no tokenizer; copy tokenizer.json or tokenizer.model into it."
        )
    with _named(folder):
        try:
            settings = family.settings(folder)
            return replace(settings, text=text_arguments(settings.text))
        except (AttributeError, LookupError, TypeError, StrictDataclassError) as error:
            raise FolderError(
                f"{folder / 'config.json'} is not the config of {family.title} ({error}); take the"
                " file of the released model."
            ) from error


def check_processor(folder: Path, settings: Settings) -> None:
    """Check that the tokenizer of a folder can be used.

    Raises:
        FolderError: If it cannot be read, or lacks a token that every prompt needs.
    """
    try:
        tokenizer = read_tokenizer(folder)
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise FolderError(
            f"The tokenizer of {folder} cannot be read ({one_line(str(error))}); copy it again."
        ) from error
    with _named(folder):
        DPNProcessor(tokenizer, **settings.processor)


def is_own(folder: Path) -> bool:
    """Whether a model folder was written by this package."""
    return family_of(folder) is FAMILIES[DPNConfig.model_type]


def load_model(folder: Path) -> Loaded:
    """Load the model of a folder, in the precision of its weights, and its processor.

    Raises:
        FolderError: If the folder holds no model of a known family, or weights are missing.
    """
    return family_of(folder).load(folder)


def check_weights(
    folder: Path, model: DPNForConditionalGeneration, parts: tuple[str, ...] | None = None
) -> dict[str, list[str]]:
    """Check names and shapes of a folder's weights, without reading them.

    Args:
        folder: Folder or file in any format of `keys.FORMATS`.
        model: Model to load them into, possibly on the meta device.
        parts: Parts that must be complete; default: those that the format contains.

    Returns:
        Names of the weights that are missing from other parts, by part.

    Raises:
        FolderError: If required weights are missing or do not fit.
    """
    with _named(folder):
        opened = WeightSource(folder, clip_place(model.config.vision_config))
        return plan(opened, _shapes(model, opened), None, parts).report.missing


def family_of(folder: Path) -> Family:
    """Return the family of a model folder.

    Raises:
        FolderError: If there is none.
    """
    with _named(folder):
        config = read_json(folder / "config.json")
    config = config if isinstance(config, dict) else {}
    kind = config.get("model_type")
    if "mm_vision_tower" in config:
        return ORIGINAL
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    known = " or ".join(f"{family.title} (`{name}`)" for name, family in FAMILIES.items())
    raise FolderError(
        f"{folder} holds a model of type `{kind}`, which is not supported; give a folder of"
        f" {known}."
    )


def _own_settings(folder: Path) -> Settings:
    config: Any = DPNConfig.from_pretrained(folder)
    processor = read_json(folder / "processor_config.json") or {}
    processor.pop("processor_class", None)
    return Settings(
        text=config.text_config.to_dict(),
        vision=config.vision_config,
        projector=config.projector_config,
        router=config.router_config,
        processor=processor,
    )


def _load_own(folder: Path) -> Loaded:
    model = DPNForConditionalGeneration.from_pretrained(folder)
    processor = DPNProcessor.from_pretrained(folder)
    _check_fit(folder, model, processor)
    return model, processor


def _check_fit(folder: Path, model: DPNForConditionalGeneration, processor: DPNProcessor) -> None:
    """Check that the ids that a processor makes are those that a model reads.

    Raises:
        FolderError: If an id has another meaning, or no embedding.
    """
    problems = [
        f"config.json has {name}={ours}, and in the tokenizer it is {theirs}"
        for name in ("image_token_id", "router_token_id")
        if (ours := getattr(model.config, name)) != (theirs := getattr(processor, name))
    ]
    most = max(processor.tokenizer.get_vocab().values())
    rows = model.get_input_embeddings().num_embeddings
    if most >= rows:
        problems.append(f"the tokenizer has ids up to {most}, and the model {rows} embeddings")
    if problems:
        raise FolderError(
            f"The files of {folder} do not belong together: {'; '.join(problems)}. Copy the folder"
            " again, or write it with save_pretrained of the model and its processor."
        )


def _llava_settings(folder: Path) -> Settings:
    _check_template(folder)
    if read_json(folder / "config.json").get("quantization_config"):
        raise FolderError(f"{folder} holds quantised weights; give the model before quantisation.")
    return read_settings(folder, {})


def _check_template(folder: Path) -> None:
    """Refuse a folder whose prompts are not those of LLaVA-1.5."""
    jinja = folder / "chat_template.jinja"
    found: dict[Path, Any] = {}
    if jinja.is_file():
        found[jinja] = jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found[folder / name] = (read_json(folder / name) or {}).get("chat_template")
    for file, text in found.items():
        if isinstance(text, str) and CUE not in text:
            raise FolderError(
                f"{file} has a chat template that is not LLaVA-1.5's (USER: ... {CUE}); only models"
                " trained with that one are supported."
            )


def _load_llava(folder: Path) -> Loaded:
    """Load LLaVA without a copy of its files; what `convert` writes loads as the same model."""
    if settings := model_settings(folder):
        check_processor(folder, settings)
    with _named(folder):
        opened = WeightSource(folder)
        recipe = recipe_of(opened, folder, [])
        model = DPNForConditionalGeneration(recipe.config, empty_language=True)
    parts = tuple({part_of(name) for name in model.state_dict()})
    if not any(name.startswith("vision.") for name in opened.shapes):
        tower = " ".join(f"--part {name}" for name in recipe.towers or ["TOWER"])
        raise FolderError(
            f"{folder} holds no vision tower; join it with the one that it was trained from:"
            f" python tools/convert.py {folder} TARGET {tower}."
        )
    check_weights(folder, model, parts)
    load(model, folder, recipe.processor.tokenizer, parts)
    for name, part in model.named_children():
        part.to(torch.float32 if name == "router" else model.language.dtype)
    return model, recipe.processor


#: Families by the `model_type` of `config.json`.
FAMILIES: dict[str, Family] = {
    DPNConfig.model_type: Family("DPN", _own_settings, _load_own),
    "llava": Family("LLaVA-1.5 in Hugging Face's format", _llava_settings, _load_llava),
}
#: The original LLaVA, whose folder may lack the vision tower and its sizes.
ORIGINAL = Family("LLaVA", None, _load_llava)


def text_arguments(values: Node) -> Node:
    """Return all arguments of a text model's config, without those of every Hugging Face config
    and without special tokens, which the tokenizer sets.
    """
    rest = {name: value for name, value in values.items() if name != "model_type"}
    config: Any = AutoConfig.for_model(values["model_type"], **rest)
    left_out = {field.name for field in fields(PreTrainedConfig)} - {"tie_word_embeddings"}
    left_out |= {"bos_token_id", "eos_token_id", "pad_token_id"}
    arguments = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in left_out}
    return {"model_type": config.model_type} | {
        name: value for name, value in arguments.items() if value is not None
    }


def _shapes(model: DPNForConditionalGeneration, opened: WeightSource) -> dict[str, Shape]:
    """Return the shapes of a model's weights, with as many vocabulary entries as the source has:
    they are matched by token when weights are loaded.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    for table in {*TABLES} & shapes.keys() & opened.shapes.keys():
        shapes[table] = (opened.shapes[table][0], *shapes[table][1:])
    return shapes


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Turn errors about a folder's files into a `FolderError` that names the folder."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        text = one_line(str(error))
        text = text if str(folder) in text else f"{folder}: {text}"
        raise FolderError(text) from error
