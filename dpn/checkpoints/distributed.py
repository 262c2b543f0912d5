"""Reader for sharded checkpoints of torch.distributed.checkpoint, as Lightning writes for FSDP2.

Their index is a pickle; only the few classes that it needs are allowed.
"""

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata

from dpn.checkpoints.containers import Container, Read, damaged, in_parts, read_pickle
from dpn.common.errors import FileError

INDEX = ".metadata"
#: Prefix of the module's tensors in Lightning's checkpoints.
PREFIX = "state_dict."
_CLASSES = {
    *((metadata.__name__, name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((metadata.__name__, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata")),
    *((metadata.__name__, name) for name in ("BytesStorageMetadata", "TensorProperties")),
    (metadata.__name__, "_MEM_FORMAT_ENCODING"),
    (filesystem.__name__, "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}


@dataclass(frozen=True)
class Shards(Container):
    """Part of the tensors of a distributed checkpoint.

    Attributes:
        pieces: Pieces of each tensor by name: start index, file, and offset and length in the file.
    """

    pieces: Mapping[str, tuple[tuple[tuple[int, ...], Path, int, int], ...]]

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Open the files; a tensor is assembled when it is read."""
        yield self._read

    def _read(self, name: str) -> Tensor:
        whole = torch.empty(0)
        for start, path, offset, length in self.pieces[name]:
            with path.open("rb") as file:
                file.seek(offset)
                piece = read_pickle(path, io.BytesIO(file.read(length)))
            if not whole.numel():
                whole = torch.empty(self.shapes[name], dtype=piece.dtype)
            whole[tuple(slice(s, s + n) for s, n in zip(start, piece.shape, strict=True))] = piece
        return whole


def is_distributed(folder: Path) -> bool:
    """Return whether a folder is a distributed checkpoint."""
    return (folder / INDEX).is_file()


def open_distributed(folder: Path) -> list[Container]:
    """Open the module's tensors in parts; the optimizer's are not read.

    Raises:
        FileNotFoundError: If a file is missing.
        FileError: If the index is damaged, is not an index, or has no module.
    """
    index = read_index(folder)
    sizes = {
        name: tuple(entry.size)
        for name, entry in index.state_dict_metadata.items()
        if name.startswith(PREFIX) and isinstance(entry, metadata.TensorStorageMetadata)
    }
    if not sizes:
        raise FileError(f"{folder} holds no tensors under {PREFIX!r}; give a Lightning checkpoint.")
    pieces: dict[str, list[Any]] = {name: [] for name in sizes}
    for place, info in index.storage_data.items():
        if place.fqn in pieces:
            path = folder / Path(info.relative_path).name
            start = tuple(place.offset or (0,) * len(sizes[place.fqn]))
            pieces[place.fqn].append((start, path, info.offset, info.length))
    files = {path for every in pieces.values() for _, path, _, _ in every}
    if missing := sorted(path.name for path in files if not path.is_file()):
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its index names.")
    volumes = {
        name: math.prod(size) * index.state_dict_metadata[name].properties.dtype.itemsize
        for name, size in sizes.items()
    }
    return [
        Shards(
            folder,
            {name.removeprefix(PREFIX): sizes[name] for name in part},
            {name.removeprefix(PREFIX): tuple(pieces[name]) for name in part},
        )
        for part in in_parts(volumes)
    ]


class _IndexReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CLASSES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module.startswith("pathlib") and name in ("PosixPath", "PurePosixPath"):
            return PurePosixPath
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_index(folder: Path) -> Any:
    """Read the `Metadata` of a checkpoint folder.

    Raises:
        FileNotFoundError: If the folder has none.
        FileError: If it is damaged or is not an index.
    """
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            index = _IndexReader(file).load()
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} asks for {error}, which no checkpoint index needs; it is refused, since it"
            " could run foreign code."
        ) from error
    except (EOFError, IndexError, KeyError, AttributeError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(index, metadata.Metadata):
        raise damaged(path, "not an index of a distributed checkpoint")
    return index
