"""Load weights of any known format into a model, one file and one tensor at a time."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpn.checkpoints.containers import Container, Shape, open_containers
from dpn.checkpoints.distributed import is_distributed, open_distributed
from dpn.checkpoints.keys import Renamed, part_of, rename
from dpn.checkpoints.lora import base_folder, is_lora, open_lora
from dpn.checkpoints.tokenizers import has_tokenizer, read_tokenizer
from dpn.checkpoints.vocabulary import TABLES, EntryMap, match_entries
from dpn.checkpoints.zero import is_zero, open_zero
from dpn.common.checksums import check_checksums
from dpn.common.errors import FileError
from dpn.model import DPNForConditionalGeneration
from dpn.model.folder import WHY_EMPTY

log = logging.getLogger(__name__)
POSITIONS = "embeddings.position_embedding.weight"
#: Weights that a source may lack or have without use: the last norms of CLIP and ConvNeXt, which
#: no forward pass reads, and prices, which calibration sets.
OPTIONAL = ("post_layernorm.", "vision.slow.layernorm.", "router.price", "projector.price")


@dataclass
class Report:
    """Summary of loading a source into a model.

    Attributes:
        source: File or folder of the weights.
        title: Name of its format.
        taken: DPN names of the loaded tensors.
        missing: DPN names that the source does not have, by part.
        unexpected: Names in the source that the model does not have, by part.
        dropped: Names in the source that are known to be unused.
        notes: Sentences about tensors that were changed.
    """

    source: Path
    title: str
    taken: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    unexpected: dict[str, list[str]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.title}): {len(self.taken)} tensors taken"]
        for title, groups in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines += [f"  {title} in {part}: {shorten(names)}" for part, names in groups.items()]
        if self.dropped:
            lines.append(f"  dropped: {shorten(self.dropped)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


class WeightSource:
    """Opened weights of a file or folder in any known format.

    Args:
        path: File or folder with the weights.
        clip: Prefix of CLIP in the target's vision tower, see `keys.rename`.
        base: Base model of a LoRA run; defaults to the folder that its config names.

    Attributes:
        base: Folder of a LoRA run's base model, otherwise None.
        shapes: Shapes by DPN name.

    Raises:
        FileNotFoundError: If a file is missing.
        FileError: If a file is damaged or refused, or the format is unknown.
    """

    def __init__(self, path: Path, clip: str = "vision.model", base: Path | None = None):
        self.path = path
        check_checksums(path)
        self.base = base_folder(path, base) if is_lora(path) else None
        self.containers: list[Container]
        if self.base:
            self.containers = open_lora(path, self.base)
        elif is_distributed(path):
            self.containers = open_distributed(path)
        elif is_zero(path):
            self.containers = open_zero(path)
        else:
            self.containers = open_containers(path)
        self.rename(clip)

    def rename(self, clip: str) -> None:
        """Rename the tensors for a tower with CLIP under the prefix `clip`."""
        shapes = {n: shape for c in self.containers for n, shape in c.shapes.items()}
        self.names: Renamed = rename(shapes, clip)
        self.shapes = {ours: shapes[theirs] for theirs, ours in self.names.ours.items()}

    def only(self, parts: Iterable[str]) -> None:
        """Keep only the tensors of these parts."""
        ours = {t: name for t, name in self.names.ours.items() if part_of(name) in parts}
        self.names = replace(self.names, ours=ours)
        self.shapes = {name: shape for name, shape in self.shapes.items() if part_of(name) in parts}

    @property
    def tokenizer(self) -> Any:
        """Tokenizer from the folder of the weights or of a LoRA run's base model, or None."""
        places = [place for place in (self.path, self.base) if place and has_tokenizer(place)]
        return read_tokenizer(places[0]) if places else None

    def read(self, container: Container, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Yield the wanted tensors of one file with their DPN names."""
        with container.open() as read:
            for theirs in container.shapes:
                if (ours := self.names.ours.get(theirs)) in wanted:
                    yield str(ours), read(theirs)


@dataclass(frozen=True)
class Plan:
    """Plan for loading the tensors of a source into a model.

    Attributes:
        source: Opened weights.
        shapes: Shapes of the model's tensors that the source fills.
        entries: Order of the vocabulary entries, if the source has vocabulary tables.
        report: Summary of the plan.
    """

    source: WeightSource
    shapes: Mapping[str, Shape]
    entries: EntryMap | None
    report: Report

    def stream(self, container: Container) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of one file with the names and shapes of the model.

        Raises:
            FileError: If a tensor holds NaN or infinity, or is quantised.
        """
        for name, tensor in self.source.read(container, self.shapes):
            _check_numbers(container.path, name, tensor)
            if name in TABLES and self.entries is not None:
                tensor = self.entries.take(tensor)
            elif name.endswith(POSITIONS) and tuple(tensor.shape) != self.shapes[name]:
                # Same as the towers do for other image sizes, see `dpn.vision`.
                antialias = name.startswith("vision.fast.")
                tensor = resize_positions(tensor, self.shapes[name][0], antialias)
            yield name, tensor


def plan(
    source: WeightSource,
    shapes: Mapping[str, Shape],
    tokens: Mapping[str, int] | None,
    needs: Iterable[str] | None = None,
) -> Plan:
    """Match a source with a model before any tensor is read.

    Args:
        source: Opened weights.
        shapes: Shapes of the model's tensors by name.
        tokens: Vocabulary of the model, if known.
        needs: Parts that must be complete; defaults to those that the source's format contains.

    Raises:
        FileError: If a required tensor is missing, a tensor is empty or its shape does not fit, or
            vocabulary entries cannot be matched.
    """
    names = source.names
    report = Report(source.path, names.kind.title, dropped=list(names.dropped))
    fits = {name: shapes[name] for name in source.shapes if name in shapes}
    if empty := [name for name in fits if 0 in source.shapes[name]]:
        raise FileError(f"{source.path} holds empty tensors ({shorten(empty)}), {WHY_EMPTY}.")
    missing = [n for n in shapes if n not in fits and not is_optional(n)]
    report.missing = _grouped(missing)
    theirs = {ours: name for name, ours in names.ours.items()}
    strange = {n: theirs[n] for n in source.shapes if n not in shapes}
    report.dropped += [name for ours, name in strange.items() if is_optional(ours)]
    if any(part_of(name) == "language" for name in shapes):
        _check_language(source, shapes, strange)
    report.unexpected = _grouped(n for n in strange if not is_optional(n))
    if names.unknown:
        report.unexpected["no part"] = list(names.unknown)
    report.taken = list(fits)
    _check_missing(report, {*names.gives} if needs is None else {*needs}, shapes)
    entries = None
    if table := next((t for t in TABLES if t in fits), None):
        words = source.tokenizer
        known = words and words.get_vocab()
        entries = match_entries(source.shapes[table][0], shapes[table][0], known, tokens)
        report.notes += [note] if (note := entries.note()) else []
    _check_shapes(source, fits, report)
    return Plan(source, fits, entries, report)


@torch.no_grad()
def load(
    model: DPNForConditionalGeneration,
    source: str | Path,
    tokenizer: Any = None,
    parts: Iterable[str] | None = None,
    base: str | Path | None = None,
) -> Report:
    """Load weights into a model; weights that the source does not have stay unchanged.

    Args:
        model: Model with the sizes of the source. A weight on the meta device is replaced by the
            source's tensor, in its precision and memory-mapped if the format allows.
        source: File or folder in any format of `keys.FORMATS`.
        tokenizer: Tokenizer of the model; required if the source's vocabulary differs.
        parts: Parts to load, such as ("projector",), which must be complete. By default, all parts
            of the source are loaded, and those that its format contains must be complete.
        base: Base model of a LoRA run; defaults to the folder that its config names.

    Returns:
        Report of loaded, missing, unexpected and changed tensors.

    Raises:
        FileNotFoundError: If the source or one of its files is missing.
        FileError: If a file is damaged or refused, a required tensor is missing or has a wrong
            shape, or vocabulary entries cannot be matched.
    """
    state = model.state_dict()
    place = clip_place(model.config.vision_config)
    opened = WeightSource(Path(source), place, Path(base) if base else None)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if model.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    if parts is not None:
        parts = {*parts} & {part_of(name) for name in shapes}
        shapes = {name: shape for name, shape in shapes.items() if part_of(name) in parts}
        opened.only(parts)
    made = plan(opened, shapes, tokenizer and tokenizer.get_vocab(), parts)
    for container in opened.containers:
        for name, tensor in made.stream(container):
            if state[name].is_meta:
                _replace(model, name, tensor)
            else:
                state[name].copy_(tensor)
    model.tie_weights()
    odd = made.report.missing or made.report.unexpected
    log.log(logging.WARNING if odd else logging.INFO, "%s", made.report)
    return made.report


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    model.get_submodule(module).register_parameter(leaf, nn.Parameter(tensor))


def clip_place(vision_config: Mapping[str, Any]) -> str:
    """Return the prefix of CLIP in a vision tower."""
    return "vision.fast" if vision_config["name"] == "clip_convnext" else "vision.model"


def resize_positions(table: Tensor, length: int, antialias: bool = False) -> Tensor:
    """Resize CLIP's position embeddings `[1 + side^2, D]` to another square grid.

    The embedding of CLS is kept; the grid is resized bicubically in fp32.
    """
    sides = [round((n - 1) ** 0.5) for n in (len(table), length)]
    grid = table[1:].float().T.unflatten(1, (sides[0], sides[0]))[None]
    grid = F.interpolate(grid, (sides[1], sides[1]), mode="bicubic", antialias=antialias)
    return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])


def is_optional(name: str) -> bool:
    """Return whether a source may lack this weight."""
    return any(piece in name for piece in OPTIONAL)


def shorten(names: Iterable[str], most: int = 6) -> str:
    """Join the first names and count the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(part_of(name), []).append(name)
    return groups


def _check_missing(report: Report, needs: set[str], shapes: Mapping[str, Shape]) -> None:
    lacking = {part: names for part, names in report.missing.items() if part in needs}
    if lacking:
        parts = "; ".join(f"{part}: {shorten(names)}" for part, names in lacking.items())
        fix = (
            "Was the model built with other sizes, or is a file of the source missing? To"
            " initialise new parts at random, name the others: init.language and init.vision"
            " instead of init.model."
        )
        if {*lacking} == {"router"}:
            fix = "Train them, e.g. with stage=gates, or choose a router without weights."
        raise FileError(f"{report.source} ({report.title}) lacks required weights, {parts}. {fix}")
    if not report.taken:
        raise FileError(
            f"{report.source} ({report.title}) has no weights for this model, whose parts are"
            f" {', '.join(_grouped(shapes))}."
        )


def _check_language(
    source: WeightSource, shapes: Mapping[str, Shape], strange: Mapping[str, str]
) -> None:
    """Refuse tensors of a text model that the model has no place for, such as biases: without them
    it would compute something else.
    """
    tied = "lm_head.weight" not in shapes  # then the head is the table of embeddings
    lost = [
        theirs
        for ours, theirs in strange.items()
        if part_of(ours) == "language" or (part_of(ours) == "lm_head" and not tied)
    ]
    if lost:
        raise FileError(
            f"{source.path} has weights of a text model that this model has no place for,"
            f" {shorten(lost)}; build the model with the text model of the source"
            " (model.text.model_type and its settings)."
        )


def _check_numbers(file: Path, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise FileError(
            f"{file} holds {name} as {str(tensor.dtype).removeprefix('torch.')}; quantised weights"
            " are not supported, take those in 16 or 32 bits."
        )
    if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
        raise FileError(
            f"{file} holds NaN or infinity in {name}; copy the file again, or take an earlier"
            " checkpoint."
        )


def _check_shapes(source: WeightSource, fits: Mapping[str, Shape], report: Report) -> None:
    wrong = []
    for name, want in fits.items():
        have = source.shapes[name]
        if name.endswith(POSITIONS) and have != want and have[1] == want[1]:
            report.notes.append(f"{name}: {have[0]} positions resized to {want[0]} (bicubic)")
        elif have[name in TABLES :] != want[name in TABLES :]:
            wrong.append(f"{name} is {list(have)}, expected {list(want)}")
    if wrong:
        raise FileError(
            f"{source.path} does not fit the model: {shorten(wrong, 4)}. Build the model with the"
            " sizes of the source."
        )
