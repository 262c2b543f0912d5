"""Reader for LoRA runs: merges peft's adapter files into the base model.

LLaVA's LoRA runs keep fully trained weights, such as the projector, in `non_lora_trainables.bin`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dpn.checkpoints.containers import Container, Read, open_containers, open_file
from dpn.common.errors import FileError
from dpn.common.json_files import read_object

CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
TRAINED = "non_lora_trainables.bin"
#: Settings of peft that change the formula; only the default formula is supported here.
PLAIN = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias", "arrow_config")


@dataclass(frozen=True)
class Merged(Container):
    """A file of the base model, with `scale * B @ A` added to some of its matrices.

    Attributes:
        base: File of the base model.
        adapter: File of the factors.
        factors: Names of A and B by name of the matrix.
        scale: lora_alpha / r, or lora_alpha / sqrt(r) with rslora.
    """

    base: Container
    adapter: Container
    factors: Mapping[str, tuple[str, str]]
    scale: float

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Open both files; sums are computed in fp32 and returned in the dtype of the base."""
        with self.base.open() as read, self.adapter.open() as factor:

            def merged(name: str) -> Tensor:
                weight = read(name)
                if name not in self.factors:
                    return weight
                a, b = (factor(part).float() for part in self.factors[name])
                return (weight.float() + self.scale * (b @ a)).to(weight.dtype)

            yield merged


@dataclass(frozen=True)
class Other(Container):
    """Some tensors of a file under new names.

    Attributes:
        file: File of the tensors.
        names: Names in the file by new name.
    """

    file: Container
    names: Mapping[str, str]

    @classmethod
    def of(cls, file: Container, names: Mapping[str, str]) -> "Other":
        """Create from a file and the new names."""
        return cls(file.path, {n: file.shapes[name] for n, name in names.items()}, file, names)

    @contextmanager
    def open(self) -> Iterator[Read]:
        with self.file.open() as read:
            yield lambda name: read(self.names[name])


def is_lora(folder: Path) -> bool:
    """Return whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def base_folder(folder: Path, base: Path | None) -> Path:
    """Return the base model's folder: the given one, or the one that the adapter's config names.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    named = (read_object(folder / CONFIG) or {}).get("base_model_name_or_path")
    found = base or Path(named if isinstance(named, str) else "")
    if not found.name or not found.is_dir():
        raise FileNotFoundError(
            f"{folder} is an adapter of {found}, which is not a local folder; give the folder of"
            " the base model (tools/convert.py SRC DST --base FOLDER)."
        )
    return found


def open_lora(folder: Path, base: Path) -> list[Container]:
    """Open the base model with the adapter merged in, and the fully trained weights.

    Raises:
        FileNotFoundError: If a file is missing.
        FileError: If a file is damaged or refused, the adapter is not LoRA, or the base model
            lacks a matrix that it changes.
    """
    settings = read_object(folder / CONFIG) or {}
    _check(folder, settings)
    files = [folder / name for name in ADAPTERS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} holds no adapter: looked for {', '.join(ADAPTERS)}.")
    adapter = open_file(files[0])
    factors: dict[str, tuple[str, str]] = {}
    full: list[Other] = []
    whole: dict[str, str] = {}
    for name in adapter.shapes:
        plain = name.removeprefix("base_model.model.")
        if match := re.fullmatch(r"(.+)\.lora_A\.weight", plain):
            factors[f"{match[1]}.weight"] = (name, name.replace(".lora_A.", ".lora_B."))
        elif ".lora_" not in plain:
            whole[plain] = name
        elif not plain.endswith(".lora_B.weight"):
            raise FileError(f"{files[0]} has {name}; only LoRA of linear layers is merged here.")
    if whole:
        full.append(Other.of(adapter, whole))
    if (folder / TRAINED).is_file():
        trained = open_file(folder / TRAINED)
        full.append(Other.of(trained, _trained_names(trained)))
    stems = {name for one in full for name in one.shapes}
    opened = open_containers(base)
    known = {name for container in opened for name in container.shapes}
    if lacking := sorted(set(factors) - known):
        raise FileError(
            f"{base} lacks {', '.join(lacking[:3])}, which the adapter {folder} changes; give the"
            " base model that it was trained on."
        )
    scale = settings["lora_alpha"] / (
        math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"]
    )
    merged = []
    for container in opened:
        shapes = {n: shape for n, shape in container.shapes.items() if n not in stems}
        merged.append(Merged(container.path, shapes, container, adapter, factors, scale))
    return [*merged, *full]


def _trained_names(file: Container) -> dict[str, str]:
    """Map names without `base_model.`, and without one of two `model.`, to those in the file."""
    names = {name.removeprefix("base_model."): name for name in file.shapes}
    if any(name.startswith("model.model.") for name in names):
        names = {name.removeprefix("model."): old for name, old in names.items()}
    return names


def _check(folder: Path, settings: Mapping[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise FileError(f"{folder / CONFIG} has peft_type={kind}; only LORA is merged here.")
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), int | float) or settings[key] <= 0:
            raise FileError(f"{folder / CONFIG} has {key}={settings.get(key)!r}; copy it again.")
    changed = [key for key in PLAIN if settings.get(key)]
    if changed:
        raise FileError(
            f"{folder / CONFIG} sets {', '.join(changed)}, which is not merged here; merge it with"
            " peft (merge_and_unload) and convert the result."
        )
