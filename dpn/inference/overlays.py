"""Draw overlay figures: which parts of an image were kept while a model answered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from dpn import inference
from dpn.data.batch import Sample, collate
from dpn.data.conversation import IMAGE
from dpn.inference.questions import QuestionSet
from dpn.inference.survivors import survivors
from dpn.metrics.answers import Row
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.reports.overlays import draw_overlay, has_places, to_pixels

T = TypeVar("T")


def draw_overlays(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    questions: QuestionSet,
    rows: Mapping[int, Row],
    count: int,
    prefix: Path,
) -> None:
    """Draw overlays of questions with images, spread from the least to the most visual work.

    Args:
        model: Model in eval mode.
        processor: Processor of the model.
        questions: Question set.
        rows: Answered questions by index in the set.
        count: Number of questions to draw.
        prefix: Path without ending; the files get `-00.png`, `-01.png` and so on.
    """
    for number, index in enumerate(by_work(rows, count)):
        row, sample = rows[index], questions.make(index)
        pixels, owners = seen(model, processor, sample)
        if not has_places(owners[0]):
            return
        route = ", ".join(f"layer {layer}: {name}" for layer, name in row["route"].items())
        text = (
            f"{questions.where(index)}: {row['prompt'].replace(IMAGE, '').strip()}",
            f"answer: {row['answer']} (right: {row['reference']})",
            f"{row['visual_macs_ratio']:.2f} of the visual MACs; {route or 'no route'}",
        )
        draw_overlay(pixels, owners, text, prefix.with_name(f"{prefix.name}-{number:02}.png"))


def by_work(rows: Mapping[T, Row], count: int) -> list[T]:
    """Choose the keys of `count` rows with images, from the least to the most visual work."""
    seeing = [key for key, row in rows.items() if row["base_rows"]]
    order = sorted(seeing, key=lambda key: rows[key]["visual_macs_ratio"])
    count = min(count, len(order))
    return [order[number * (len(order) - 1) // max(count - 1, 1)] for number in range(count)]


def seen(
    model: DPNForConditionalGeneration, processor: DPNProcessor, sample: Sample
) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """Return the first image of a question as the model sees it, and its cells at each layer.

    Returns:
        The image, `[H, W, 3]` in 0..255, and for each layer the row that holds each cell, `[h, w]`,
        see `dpn.inference.survivors`.
    """
    batch = collate([sample], processor.pad_token_id, "left").to(model.device)
    layers = survivors(model, inference.prompts(batch))
    recipe = processor.transform
    pixels = to_pixels(sample.images[0], recipe.mean, recipe.std)
    return pixels, [images[0] for images in layers]
