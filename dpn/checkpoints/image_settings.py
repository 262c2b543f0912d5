"""Read what a model folder says about images, and name its files that are not read."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpn.common.errors import FileError
from dpn.common.json_files import read_object
from dpn.common.ranges import is_number
from dpn.common.text import shorten
from dpn.data.images import STATISTICS, are_statistics

Node = dict[str, Any]
#: File of an image processor; newer folders keep it in the second one, under `image_processor`.
FILES = ("preprocessor_config.json", "processor_config.json")
#: What the processor does with every image, by the name in Hugging Face's files.
ALWAYS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,  # bicubic
}
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def read_image_settings(folders: Sequence[Path]) -> Node:
    """Return the arguments of a `DPNProcessor` that the first folder with an image processor gives;
    empty if there is none.

    Raises:
        FileError: If the file asks for something that the processor does not do.
    """
    found = (_image_processor(folder) for folder in folders if folder.is_dir())
    return next((_settings(*one) for one in found if one), {})


def _image_processor(folder: Path) -> tuple[Path, Node] | None:
    for name in FILES:
        config = read_object(folder / name) or {}
        config = config.get("image_processor", config)
        if isinstance(config, dict) and "image_mean" in config:
            return folder / name, config
    return None


def _settings(file: Path, config: Node) -> Node:
    for key, value in ALWAYS.items():
        given = config.get(key, value)
        number = int(given) if isinstance(given, bool) else given
        if not is_number(number) or not math.isclose(number, value):
            raise FileError(
                f"{file} has {key}={shorten(repr(given), 80)}; only {value!r} is supported."
            )
    found: Node = {}
    for name in STATISTICS:
        key = f"image_{name}"
        if not are_statistics(name, values := config.get(key)):
            shown = shorten(repr(values), 80)
            raise FileError(
                f"{file} has {key}={shown}; it must be three numbers, {STATISTICS[name]}."
            )
        found[key] = values
    return found


def unread_files(folder: Path) -> tuple[str, ...]:
    """Return a sentence about each file of a Hugging Face folder that changes answers there and is
    not read here.
    """
    notes = []
    settings = read_object(folder / "tokenizer_config.json") or {}
    named = [name for name in CHAT_TEMPLATES if (folder / name).is_file()]
    if "chat_template" in settings:
        named.append("tokenizer_config.json")
    if named:
        notes.append(
            f"the chat template in {named[0]} is not used: conversations follow LLaVA's `v1`"
            " template (processor.template)"
        )
    images = _image_processor(folder)
    if images and images[1].get("do_center_crop"):
        notes.append(
            f"{images[0].name} crops images; here they are padded to a square, as LLaVA was trained"
            " (processor.image_mode)"
        )
    generation = read_object(folder / "generation_config.json") or {}
    if isinstance(generation.get("eos_token_id"), list):
        notes.append(
            f"generation_config.json ends answers at any of {generation['eos_token_id']}; here they"
            " end at the tokenizer's EOS token"
        )
    return tuple(notes)
