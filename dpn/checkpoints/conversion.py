"""Convert a folder of any known format to a DPN folder for `from_pretrained`, file by file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dpn.checkpoints.containers import Container, Shape
from dpn.checkpoints.keys import part_of
from dpn.checkpoints.loading import (
    Plan,
    Report,
    WeightSource,
    clip_place,
    is_optional,
    plan,
    shorten,
)
from dpn.checkpoints.settings import read_settings
from dpn.checkpoints.tokenizers import read_tokenizer
from dpn.common.checksums import write_checksums
from dpn.common.errors import FileError
from dpn.common.files import atomic_folder, write_json
from dpn.common.json_files import read_object
from dpn.common.progress import progress
from dpn.model import DPNConfig, DPNForConditionalGeneration, DPNProcessor


@dataclass(frozen=True)
class Recipe:
    """Parts of a converted folder other than weights.

    Attributes:
        config: Config of the model.
        processor: Processor, including the tokenizer.
        towers: Folders or names of the vision towers that the source was trained from.
        notes: Sentences for the source's report.
    """

    config: DPNConfig
    processor: DPNProcessor
    towers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | Path,
    parts: Sequence[str | Path] = (),
    like: str | Path | None = None,
    base: str | Path | None = None,
) -> list[Report]:
    """Convert weights to a folder that `from_pretrained` can read.

    Files are converted one by one, so only one is in memory at a time. Weights keep their dtype. A
    source with only a part of a model, such as a projector file, gives a folder with that part's
    weights.

    Args:
        source: File or folder in any format of `keys.FORMATS`.
        target: Folder to write; it must not exist.
        parts: Files or folders with weights that the source lacks, such as a frozen CLIP; the
            folder named in the source's config is tried automatically.
        like: DPN folder whose config and tokenizer fit the source, if it has none.
        base: Base model of a LoRA run; defaults to the folder that its config names.

    Returns:
        One report for the source and one for each part that was used.

    Raises:
        FileExistsError: If the target exists.
        FileNotFoundError: If a file is missing.
        FileError: If a file is damaged or refused, or a weight is missing or has a wrong shape.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another target, or remove it first.")
    opened = WeightSource(source, base=Path(base) if base else None)
    if not {"language", "projector"} <= opened.names.gives:
        plans = [plan(opened, opened.shapes, None, ())]
        with atomic_folder(target) as folder:
            _write_weights(folder, plans, {})
        return [made.report for made in plans]
    recipe = recipe_of(opened, Path(like) if like else source, [Path(part) for part in parts])
    config = recipe.config
    with torch.device("meta"):
        model = DPNForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    plans = _plans(opened, shapes, recipe, parts)
    config.architectures = [type(model).__name__]
    config.dtype = _dtype(plans)
    filled = {name for made in plans for name in made.shapes}
    rest = {n: _default(n, shape, config.dtype) for n, shape in shapes.items() if n not in filled}
    with atomic_folder(target) as folder:
        _write_weights(folder, plans, rest)
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        recipe.processor.save_pretrained(folder)
        write_checksums(folder)
    return [made.report for made in plans]


def recipe_of(opened: WeightSource, folder: Path, parts: Sequence[Path]) -> Recipe:
    """Read config and processor of a DPN or LLaVA folder.

    Args:
        opened: Weights, whose tokenizer is taken if they have one.
        folder: Folder of the config.
        parts: Folders that may have the config of the vision tower.
    """
    if (read_object(folder / "config.json") or {}).get("model_type") == DPNConfig.model_type:
        config = DPNConfig.from_pretrained(folder)
        return Recipe(config, DPNProcessor.from_pretrained(folder))
    settings = read_settings(folder, opened.shapes, parts)
    tokenizer = opened.tokenizer or read_tokenizer(folder)
    processor = DPNProcessor(tokenizer, **settings.processor)
    text = settings.text | {
        "vocab_size": processor.vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": processor.pad_token_id,
    }
    config = DPNConfig(
        text_config=text,
        vision_config=settings.vision,
        projector_config=settings.projector,
        router_config=settings.router,
        image_token_id=processor.image_token_id,
        router_token_id=processor.router_token_id,
    )
    return Recipe(config, processor, settings.towers, settings.notes)


def _plans(
    opened: WeightSource, shapes: Mapping[str, Shape], recipe: Recipe, parts: Sequence[str | Path]
) -> list[Plan]:
    """Plan the source and each part that has weights which the previous ones lack."""
    place = clip_place(recipe.config.vision_config or {})
    opened.rename(place)
    tokens = recipe.processor.tokenizer.get_vocab()
    plans = [plan(opened, shapes, tokens)]
    plans[0].report.notes += recipe.notes
    if lost := [name for name in opened.names.unknown if "vision" not in name]:
        raise FileError(
            f"{opened.path} has tensors of no known part of a LLaVA, {shorten(lost)}; the converted"
            " model would compute something else, so nothing was written."
        )
    for path in map(Path, [*parts, *recipe.towers]):
        lacking = {n: shapes[n] for names in plans[-1].report.missing.values() for n in names}
        given = path not in map(Path, recipe.towers)
        if given and not lacking:
            plans[-1].report.notes.append(f"{path} was not needed: nothing is missing")
        elif given or (path.exists() and any(name.startswith("vision.") for name in lacking)):
            plans.append(plan(WeightSource(path, place), lacking, tokens, ()))
    if missing := plans[-1].report.missing:
        names = "; ".join(f"{part}: {shorten(names)}" for part, names in missing.items())
        towers = f" The model started from {' and '.join(recipe.towers)}." if recipe.towers else ""
        raise FileError(
            f"{opened.path} lacks {names}.{towers} Give the folder or file that has them as a part"
            " (tools/convert.py SRC DST --part PATH)."
        )
    return plans


def _dtype(plans: Sequence[Plan]) -> torch.dtype:
    """Return the dtype of the first tensor of the language model."""
    made = plans[0]
    for container in made.source.containers:
        for name, tensor in made.source.read(container, made.shapes):
            if part_of(name) == "language":
                return tensor.dtype
    raise FileError(f"{made.source.path} has no language model.")


def _default(name: str, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Return the default of a weight that no source has: ones for a norm, otherwise zeros."""
    assert is_optional(name), name
    return (torch.ones if name.endswith("norm.weight") else torch.zeros)(shape, dtype=dtype)


def _write_weights(folder: Path, plans: Sequence[Plan], rest: Mapping[str, Tensor]) -> None:
    """Write one safetensors file for each file read, and the index."""
    files = [(made, c) for made in plans for c in made.source.containers if _has(made, c)]
    names = [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    if len(files) == 1:
        names = ["model.safetensors"]
    places: dict[str, str] = {}
    size = 0
    shown = progress(files, "converting", unit="files")
    for name, (made, container) in zip(names, shown, strict=True):
        tensors = {n: _plain(tensor) for n, tensor in made.stream(container)}
        if name == names[-1]:
            tensors |= rest
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)


def _has(made: Plan, container: Container) -> bool:
    return any(made.source.names.ours.get(name) in made.shapes for name in container.shapes)


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor that safetensors can write: contiguous, in memory of its own."""
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
