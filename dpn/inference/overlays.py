"""Pictures of what was kept of some images while a model answered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from dpn import inference
from dpn.data.batch import Sample, collate
from dpn.data.conversation import IMAGE
from dpn.inference.questions import Exam, Row
from dpn.inference.survivors import survivors
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.reports.overlays import draw_overlay, has_places, to_pixels

T = TypeVar("T")


def draw_overlays(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    exam: Exam,
    rows: Mapping[int, Row],
    count: int,
    prefix: Path,
) -> None:
    """Draw questions from the one that took the least visual work to the one that took the most.

    Args:
        model: in eval mode.
        processor: of the model.
        exam: the questions.
        rows: their answers by place.
        count: how many questions, of those with images.
        prefix: of the files: `-00.png` is added, and so on.
    """
    for number, index in enumerate(by_work(rows, count)):
        row, sample = rows[index], exam.make(index)
        pixels, owners = seen(model, processor, sample)
        if not has_places(owners[0]):
            return
        route = ", ".join(f"layer {layer}: {name}" for layer, name in row["route"].items())
        text = (
            f"{exam.where(index)}: {row['prompt'].replace(IMAGE, '').strip()}",
            f"answer: {row['answer']} (right: {row['reference']})",
            f"{row['visual_macs_ratio']:.2f} of the visual MACs; {route or 'no route'}",
        )
        draw_overlay(pixels, owners, text, prefix.with_name(f"{prefix.name}-{number:02}.png"))


def by_work(rows: Mapping[T, Row], count: int) -> list[T]:
    """Keys of so many rows with images, from the least visual work to the most."""
    seeing = [key for key, row in rows.items() if row["base_rows"]]
    order = sorted(seeing, key=lambda key: rows[key]["visual_macs_ratio"])
    count = min(count, len(order))
    return [order[number * (len(order) - 1) // max(count - 1, 1)] for number in range(count)]


def seen(
    model: DPNForConditionalGeneration, processor: DPNProcessor, sample: Sample
) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """The first image of a question as the model sees it, and at each layer who owns its cells.

    Returns:
        `[H, W, 3]` in 0..255, and per layer `[h, w]`, see `dpn.inference.survivors`.
    """
    batch = collate([sample], processor.pad_token_id, "left").to(model.device)
    layers = survivors(model, inference.prompts(batch))
    recipe = processor.transform
    pixels = to_pixels(sample.images[0], recipe.mean, recipe.std)
    return pixels, [images[0] for images in layers]
