"""Reader for checkpoints of DeepSpeed's ZeRO, as Lightning writes them.

Every process has written its part of the weights. Trained weights are read in fp32 from the
optimizer's copy, frozen ones as they are. DeepSpeed need not be installed: substitutes are used for
the four of its classes that the files name.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpn.checkpoints.containers import Container, Read, Shape, damaged, in_parts, read_pickle
from dpn.common.errors import FileError

State = dict[str, Any]
Pieces = tuple[Tensor, ...]

#: Subfolder of the checkpoint folder in which DeepSpeed writes its files.
FOLDER = "checkpoint"
#: File of all processes, up to stage 2.
MODEL = "mp_rank_00_model_states.pt"
PARTITION = "single_partition_of_fp32_groups"
#: File of one process; names of optimizer files start with `bf16_` if the model computes in bf16.
_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_(model|optim)_states\.pt")


class _Unread:
    """Substitute for an object that is not needed."""


_CLASSES: dict[str, type] = {
    "deepspeed.runtime.zero.config.ZeroStageEnum": int,
    "deepspeed.utils.tensor_fragment.fragment_address": _Unread,
    "deepspeed.runtime.fp16.loss_scaler.LossScaler": _Unread,
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler": _Unread,
}


@dataclass(frozen=True)
class Partitions(Container):
    """Part of the tensors of a ZeRO checkpoint.

    Attributes:
        pieces: Consecutive pieces of each tensor by name, memory-mapped from the files of the
            processes; the last one may be padded.
    """

    pieces: Mapping[str, Pieces]

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Open the files; a tensor is assembled when it is read."""
        yield self._read

    def _read(self, name: str) -> Tensor:
        shape = self.shapes[name]
        flat = torch.cat([piece.flatten() for piece in self.pieces[name]])
        return flat[: math.prod(shape)].view(shape)


def is_zero(folder: Path) -> bool:
    """Return whether a folder is a ZeRO checkpoint."""
    return _place(folder) is not None


def open_zero(folder: Path) -> list[Container]:
    """Open the module's tensors in parts; the optimizer's state is not read.

    Args:
        folder: Folder that a trainer wrote, or its subfolder with the files of the processes.

    Raises:
        FileNotFoundError: If a file is missing.
        FileError: If a file is damaged or refused, or the files are of different runs.
    """
    place = _place(folder)
    assert place is not None, folder
    try:
        shapes, pieces = _tensors(place)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(place, f"not in ZeRO's format, {error!r}") from error
    for name, shape in shapes.items():
        if sum(piece.numel() for piece in pieces[name]) < math.prod(shape):
            raise _mixed(place, f"they hold only a part of {name}")
    sizes = {n: math.prod(shape) * pieces[n][0].itemsize for n, shape in shapes.items()}
    return [
        Partitions(place, {n: shapes[n] for n in part}, {n: pieces[n] for n in part})
        for part in in_parts(sizes)
    ]


def _place(folder: Path) -> Path | None:
    """Return the folder with the files of the processes, or None."""
    for place in (folder, folder / FOLDER):
        if any(place.glob("*_optim_states.pt")) or any(place.glob("*_model_states.pt")):
            return place
    return None


def _tensors(place: Path) -> tuple[dict[str, Shape], dict[str, Pieces]]:
    """Return the shapes and pieces of all parameters and buffers."""
    optimizers = [state["optimizer_state_dict"] for state in _read_ranks(place, "optim")]
    stage3 = optimizers[0]["zero_stage"] == 3
    models = _read_ranks(place, "model") if stage3 else [_read(place, MODEL)]
    model = models[0]
    if _world(model) != len(optimizers):
        raise _mixed(place, f"{_world(model)} and {len(optimizers)} processes wrote them")
    key, cut = ("fp32_flat_groups", _cut_each) if stage3 else (PARTITION, _cut_whole)
    if any(map(any, optimizers[0].get("param_alignment_paddings", ()))):
        raise FileError(
            f"{place} was written with zero_optimization.parameter_alignment, which is not"
            " supported; merge it with the zero_to_fp32.py that DeepSpeed wrote beside it."
        )
    flat = [state[key] for state in optimizers]
    if len({len(groups) for groups in (model["param_shapes"], *flat)}) > 1:
        raise _mixed(place, "they have different groups of parameters")
    shapes: dict[str, Shape] = {}
    pieces: dict[str, Pieces] = {}
    for own, parts in zip(model["param_shapes"], zip(*flat, strict=True), strict=True):
        found = cut(parts, own)
        left = sum(map(len, parts)) - sum(len(piece) for each in found.values() for piece in each)
        if left > 2 * len(parts):  # more than padding
            raise _mixed(place, f"the group of {next(iter(own))} has {left} numbers too many")
        shapes |= own
        pieces |= found
    for name, shape in (model["frozen_param_shapes"] or {}).items():
        shapes[name] = shape
        pieces[name] = tuple(state["frozen_param_fragments"][name] for state in models)
    for name in model["buffer_names"]:
        if name in model["module"]:  # other buffers are not saved
            shapes[name], pieces[name] = model["module"][name].shape, (model["module"][name],)
    for alias, name in model["shared_params"].items():
        shapes[alias], pieces[alias] = shapes[name], pieces[name]
    return {name: tuple(shape) for name, shape in shapes.items()}, pieces


def _cut_whole(flat: Sequence[Tensor], shapes: Mapping[str, Shape]) -> dict[str, Pieces]:
    """Split the groups of stage 1 and 2, in which processes hold parts of the whole group."""
    pieces = {}
    start = 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        found, first = [], 0
        for part in flat:
            found.append(part[max(start - first, 0) : max(end - first, 0)])
            first += len(part)
        pieces[name] = tuple(found)
        start = end
    return pieces


def _cut_each(flat: Sequence[Tensor], shapes: Mapping[str, Shape]) -> dict[str, Pieces]:
    """Split the groups of stage 3, in which processes hold parts of each parameter."""
    pieces = {}
    start = 0
    for name, shape in shapes.items():
        end = start + math.ceil(math.prod(shape) / len(flat))
        pieces[name] = tuple(part[start:end] for part in flat)
        start = end
    return pieces


def _read_ranks(place: Path, kind: str) -> list[State]:
    """Read the file of each process, ordered by rank."""
    matches = [m for path in place.iterdir() if (m := _RANK.fullmatch(path.name)) and m[2] == kind]
    if not matches:
        raise FileNotFoundError(
            f"{place} lacks zero_pp_rank_N_mp_rank_00_{kind}_states.pt of every process N; copy"
            " them there."
        )
    states = {int(m[1]): _read(place, m[0]) for m in matches}
    worlds = {_world(state) for state in states.values()}
    if len(worlds) > 1:
        counts = " and ".join(map(str, sorted(worlds)))
        raise _mixed(place, f"{counts} processes wrote them")
    world = worlds.pop()
    if len(matches) > world:
        raise _mixed(place, f"{world} processes wrote {len(matches)} {kind} states")
    if missing := [rank for rank in range(world) if rank not in states]:
        names = ", ".join(re.sub(r"rank_\d+_mp", f"rank_{n}_mp", matches[0][0]) for n in missing)
        raise FileNotFoundError(f"{place} lacks {names}; copy the files of all {world} processes.")
    return [states[rank] for rank in range(world)]


def _world(state: State) -> int:
    """Return the number of training processes, which may be stored once or for each group."""
    if "dp_world_size" in state:
        return int(state["dp_world_size"])
    count = state["optimizer_state_dict"]["partition_count"]
    return max(count) if isinstance(count, list) else int(count)


def _read(place: Path, name: str) -> State:
    if not (place / name).is_file():
        raise FileNotFoundError(f"{place} lacks {name}; copy it there.")
    state = read_pickle(place / name, allowed=_CLASSES)
    if not isinstance(state, dict):
        raise damaged(place / name, "not a ZeRO checkpoint")
    return state


def _mixed(place: Path, why: str) -> FileError:
    return FileError(f"The files in {place} are of different runs: {why}; copy those of one run.")
