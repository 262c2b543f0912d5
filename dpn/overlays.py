"""Pictures of what was kept of some images while a model answered."""

from collections.abc import Mapping
from pathlib import Path

from dpn import inference
from dpn.answering import Exam, Row
from dpn.data.batch import collate
from dpn.data.conversation import IMAGE
from dpn.model import DPNForConditionalGeneration
from dpn.processor import DPNProcessor
from dpn.reports.overlays import draw_overlay, to_pixels
from dpn.survivors import survivors


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
    seeing = [index for index, row in rows.items() if row["base_rows"]]
    order = sorted(seeing, key=lambda index: rows[index]["visual_macs_ratio"])
    for number in range(min(count, len(order))):
        index = order[number * (len(order) - 1) // max(count - 1, 1)]
        sample, row = exam.make(index), rows[index]
        batch = collate([sample], processor.pad_token_id, "left").to(model.device)
        layers = survivors(model, inference.prompts(batch))
        owners = [images[0] for images in layers]
        if owners[0].shape[0] == 1 < owners[0].size:
            return  # a method that leaves no grid
        recipe = processor.transform
        route = ", ".join(f"layer {layer}: {name}" for layer, name in row["route"].items())
        text = (
            f"{exam.where(index)}: {row['prompt'].replace(IMAGE, '').strip()}",
            f"answer: {row['answer']} (right: {row['reference']})",
            f"{row['visual_macs_ratio']:.2f} of the visual MACs; {route or 'no route'}",
        )
        pixels = to_pixels(sample.images[0], recipe.mean, recipe.std)
        draw_overlay(pixels, owners, text, prefix.with_name(f"{prefix.name}-{number:02}.png"))
