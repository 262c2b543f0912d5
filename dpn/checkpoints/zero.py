"""Folders of DeepSpeed's ZeRO, as Lightning writes them: every process its share of the weights.

What was trained is read in fp32, from the optimizer's copy, what was frozen as it is. DeepSpeed
need not be installed: the files name four of its classes, and others stand in for these.
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

State = dict[str, Any]
Pieces = tuple[Tensor, ...]

#: Below the folder that a trainer names, Lightning has DeepSpeed write here.
FOLDER = "checkpoint"
#: Of all processes together, up to stage 2.
MODEL = "mp_rank_00_model_states.pt"
PARTITION = "single_partition_of_fp32_groups"
#: Of one process; the optimizer's names start with `bf16_` where the model computes in bf16.
_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_(model|optim)_states\.pt")


class _Unread:
    """Takes the place of an object that is not looked at."""


_CLASSES: dict[str, type] = {
    "deepspeed.runtime.zero.config.ZeroStageEnum": int,
    "deepspeed.utils.tensor_fragment.fragment_address": _Unread,
    "deepspeed.runtime.fp16.loss_scaler.LossScaler": _Unread,
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler": _Unread,
}


@dataclass(frozen=True)
class Partitions(Container):
    """Some tensors of a ZeRO checkpoint.

    Attributes:
        pieces: name -> what follows each other in it, mapped from the files of the processes; the
            last one may be padded.
    """

    pieces: Mapping[str, Pieces]

    @contextmanager
    def open(self) -> Iterator[Read]:
        """See `Container.open`; a tensor is put together when it is asked for."""
        yield self._read

    def _read(self, name: str) -> Tensor:
        shape = self.shapes[name]
        flat = torch.cat([piece.flatten() for piece in self.pieces[name]])
        return flat[: math.prod(shape)].view(shape)


def is_zero(folder: Path) -> bool:
    """Whether a folder is a checkpoint of ZeRO."""
    return _place(folder) is not None


def open_zero(folder: Path) -> list[Container]:
    """The module's tensors, in parts; the optimizer's are left where they are.

    Args:
        folder: that a trainer wrote, or the one in it with the files of the processes.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged or refused, or the files are of different runs.
    """
    place = _place(folder)
    assert place is not None, folder
    try:
        shapes, pieces = _tensors(place)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(place, f"not as ZeRO writes it, {error!r}") from error
    for name, shape in shapes.items():
        if sum(piece.numel() for piece in pieces[name]) < math.prod(shape):
            raise _mixed(place, f"they hold too little of {name}")
    sizes = {n: math.prod(shape) * pieces[n][0].itemsize for n, shape in shapes.items()}
    return [
        Partitions(place, {n: shapes[n] for n in part}, {n: pieces[n] for n in part})
        for part in in_parts(sizes)
    ]


def _place(folder: Path) -> Path | None:
    """Where the files of the processes are."""
    for place in (folder, folder / FOLDER):
        if any(place.glob("*_optim_states.pt")) or any(place.glob("*_model_states.pt")):
            return place
    return None


def _tensors(place: Path) -> tuple[dict[str, Shape], dict[str, Pieces]]:
    """Shapes and pieces of all parameters and buffers."""
    optimizers = [state["optimizer_state_dict"] for state in _read_ranks(place, "optim")]
    stage3 = optimizers[0]["zero_stage"] == 3
    models = _read_ranks(place, "model") if stage3 else [_read(place, MODEL)]
    model = models[0]
    if _world(model) != len(optimizers):
        raise _mixed(place, f"{_world(model)} and {len(optimizers)} processes wrote them")
    key, cut = ("fp32_flat_groups", _cut_each) if stage3 else (PARTITION, _cut_whole)
    if any(map(any, optimizers[0].get("param_alignment_paddings", ()))):
        raise ValueError(
            f"{place} was written with zero_optimization.parameter_alignment, whose gaps are not"
            " read here; put it together with the zero_to_fp32.py that DeepSpeed left beside it."
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
            raise _mixed(place, f"the group of {next(iter(own))} holds {left} numbers too many")
        shapes |= own
        pieces |= found
    for name, shape in (model["frozen_param_shapes"] or {}).items():
        shapes[name] = shape
        pieces[name] = tuple(state["frozen_param_fragments"][name] for state in models)
    for name in model["buffer_names"]:
        if name in model["module"]:  # others are not kept
            shapes[name], pieces[name] = model["module"][name].shape, (model["module"][name],)
    for alias, name in model["shared_params"].items():
        shapes[alias], pieces[alias] = shapes[name], pieces[name]
    return {name: tuple(shape) for name, shape in shapes.items()}, pieces


def _cut_whole(flat: Sequence[Tensor], shapes: Mapping[str, Shape]) -> dict[str, Pieces]:
    """Up to stage 2 the parameters of a group follow each other, and the whole is shared out."""
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
    """In stage 3 every parameter is shared out by itself."""
    pieces = {}
    start = 0
    for name, shape in shapes.items():
        end = start + math.ceil(math.prod(shape) / len(flat))
        pieces[name] = tuple(part[start:end] for part in flat)
        start = end
    return pieces


def _read_ranks(place: Path, kind: str) -> list[State]:
    """What each process wrote, in their order."""
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
        raise FileNotFoundError(f"{place} lacks {names}; copy what all {world} processes wrote.")
    return [states[rank] for rank in range(world)]


def _world(state: State) -> int:
    """How many processes trained; an optimizer says it once or for each group."""
    if "dp_world_size" in state:
        return int(state["dp_world_size"])
    count = state["optimizer_state_dict"]["partition_count"]
    return max(count) if isinstance(count, list) else int(count)


def _read(place: Path, name: str) -> State:
    if not (place / name).is_file():
        raise FileNotFoundError(f"{place} lacks {name}; copy it there.")
    state = read_pickle(place / name, allowed=_CLASSES)
    if not isinstance(state, dict):
        raise damaged(place / name, "no checkpoint of ZeRO")
    return state


def _mixed(place: Path, why: str) -> ValueError:
    return ValueError(f"The files in {place} are of different runs: {why}; copy one run's alone.")
