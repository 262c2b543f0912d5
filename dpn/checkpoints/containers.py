"""Files of tensors, read on demand: safetensors and torch pickles, whole or sharded.

Pickles are read by torch's restricted unpickler: tensors and plain values, never code.
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from dpn.common.errors import FileError
from dpn.common.json_files import read_object
from dpn.metrics.memory import GIB

Shape = tuple[int, ...]
Read = Callable[[str], Tensor]

#: Files to look for in a folder, in order of preference.
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin", "mm_projector.bin")
#: Keys under which checkpoints keep a state dict: Lightning and timm, DeepSpeed.
STATE_KEYS = ("state_dict", "module")
#: Bytes per part when reading checkpoints that several processes wrote; a part acts as one file.
PART_BYTES = 4 * GIB


@dataclass(frozen=True)
class Container:
    """One file of tensors.

    Attributes:
        path: Path of the file.
        shapes: Shapes of the tensors by name in the file.
    """

    path: Path
    shapes: Mapping[str, Shape]

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Open the file and yield a function that returns a tensor by name.

        Tensors stay valid after closing, which keeps the file mapped.
        """
        raise TypeError(f"{type(self).__name__} must define `open`")
        yield


class SafetensorsFile(Container):
    """A `.safetensors` file."""

    @classmethod
    def of(cls, path: Path) -> "SafetensorsFile":
        """Read the names and shapes of a file.

        Raises:
            FileError: If the file is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                return cls(path, {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise damaged(path, error) from error

    @contextmanager
    def open(self) -> Iterator[Read]:
        with safe_open(self.path, "pt") as file:
            yield file.get_tensor


class PickleFile(Container):
    """A file written by `torch.save`: a state dict, or a checkpoint that contains one."""

    @classmethod
    def of(cls, path: Path) -> "PickleFile":
        """Read the names and shapes of a file.

        Raises:
            FileError: If the file is damaged, or holds anything but tensors and plain values.
        """
        return cls(path, {name: tuple(tensor.shape) for name, tensor in _state(path).items()})

    @contextmanager
    def open(self) -> Iterator[Read]:
        yield _state(self.path).__getitem__


def read_pickle(
    path: Path, piece: io.BytesIO | None = None, allowed: Mapping[str, type] | None = None
) -> Any:
    """Read a file written by `torch.save`; tensors are memory-mapped if its format allows.

    Args:
        path: Path of the file.
        piece: Part of the file to read instead of the whole.
        allowed: Names of further classes that the file may contain, each with its substitute.

    Raises:
        FileError: If the file is damaged, or holds anything but tensors and plain values.
    """
    try:
        mapped = piece is None and zipfile.is_zipfile(path)
        with safe_globals([(kind, name) for name, kind in (allowed or {}).items()]):
            return torch.load(piece or path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):  # no class or function was asked for
            raise damaged(path, "not a file of torch.save") from error
        raise FileError(
            f"{path} holds more than tensors and plain values; it is refused, since reading it"
            " could run foreign code; save only its tensors, preferably as safetensors."
        ) from error
    except (RuntimeError, EOFError, IndexError) as error:
        raise damaged(path, error) from error


def open_containers(source: Path) -> list[Container]:
    """Open the weight files of a source, ordered by name.

    Args:
        source: A file, or a folder in the layout of Hugging Face or LLaVA.

    Raises:
        FileNotFoundError: If the source does not exist, has no weights, or lacks a shard that its
            index names.
        FileError: If a file is damaged or refused.
    """
    if source.is_file():
        return [open_file(source)]
    if not source.is_dir():
        raise FileNotFoundError(f"There is no file or folder {source}; check the path.")
    for name in INDEXES:
        if (source / name).is_file():
            return [open_file(path) for path in _shards(source / name)]
    for name in SINGLES:
        if (source / name).is_file():
            return [open_file(source / name)]
    raise FileNotFoundError(
        f"{source} holds no weights: looked for {', '.join((*INDEXES, *SINGLES))}; give the folder"
        " that holds one of them, or the file itself."
    )


def open_file(path: Path) -> Container:
    """Open one file of tensors."""
    kind = SafetensorsFile if path.suffix == ".safetensors" else PickleFile
    return kind.of(path)


def in_parts(sizes: Mapping[str, int]) -> list[list[str]]:
    """Group tensors into parts of at most `PART_BYTES`; a larger tensor is a part of its own.

    Args:
        sizes: Size of each tensor in bytes, by name.
    """
    parts: list[list[str]] = [[]]
    room = PART_BYTES
    for name, size in sizes.items():
        if size > room and parts[-1]:
            parts.append([])
            room = PART_BYTES
        parts[-1].append(name)
        room -= size
    return parts


def _shards(index: Path) -> list[Path]:
    places = (read_object(index) or {}).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise FileError(f"{index} has no `weight_map` from tensors to files; copy it again.")
    names = sorted(set(places.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise FileError(f"{index} names files outside its folder: {', '.join(outside)}.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names shards that are missing: {', '.join(missing)}; copy them beside it."
        )
    return [index.parent / name for name in names]


def _state(path: Path) -> dict[str, Tensor]:
    value = read_pickle(path)
    for key in STATE_KEYS:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    tensors = value.items() if isinstance(value, dict) else ()
    found = {name: item for name, item in tensors if isinstance(item, Tensor)}
    if not found:
        raise FileError(f"{path} holds no tensors; give a file of weights.")
    return found


def damaged(path: Path, why: object) -> FileError:
    """Create the error for a file that cannot be read."""
    first = str(why).partition("\n")[0] or "it ends too early"
    return FileError(f"{path} is damaged or incomplete ({first}); copy or write it again.")
