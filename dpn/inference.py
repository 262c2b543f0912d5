"""Answers of a trained model: the one path that train, eval and generate share."""

import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from rich.progress import track
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from dpn.cost import prefill_flops, visual_macs_ratio
from dpn.data.batch import IGNORE, Batch, collate
from dpn.data.rows import Questions
from dpn.distributed import several_processes
from dpn.files import atomic_folder
from dpn.metrics import accuracies, cost_metrics, score
from dpn.model import DPNForConditionalGeneration
from dpn.processor import DPNProcessor
from dpn.routers.base import Trace

if TYPE_CHECKING:
    from dpn.data.module import DataModule

log = logging.getLogger(__name__)
disable_progress_bar()  # of reading and writing weights
Answer = dict[str, Any]


def load(folder: Path, device: str = "auto") -> tuple[DPNForConditionalGeneration, DPNProcessor]:
    """Model and processor of a run folder or a Hugging Face folder, ready to answer.

    Raises:
        FileNotFoundError: if neither is there.
    """
    place = model_folder(folder)
    if not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"run={folder} holds no model: expected {place / 'config.json'}; give the folder of a"
            " finished run or a Hugging Face model folder."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DPNForConditionalGeneration.from_pretrained(place).to(device).eval()
    return model, DPNProcessor.from_pretrained(place)


def model_folder(folder: Path) -> Path:
    """The Hugging Face folder of a run folder; any other folder is one itself."""
    return folder / "model" if (folder / "model").is_dir() else folder


def save(model: DPNForConditionalGeneration, processor: DPNProcessor, folder: Path) -> None:
    """Write a Hugging Face folder; a folder of that name is replaced once the new one is whole."""
    with atomic_folder(folder) as fresh:
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)


@torch.inference_mode()
def answer(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    **options: Any,
) -> list[Answer]:
    """Answer left-padded prompts.

    Args:
        model: in eval mode.
        processor: of the model.
        inputs: tensors of `forward`, without labels.
        max_new_tokens: upper limit.
        options: of Hugging Face's `generate`; default: greedy.

    Returns:
        For each prompt its answer, route (what was chosen at each layer that chooses), rows (visual
        rows that enter each layer), base_rows (the tower's uncompressed tokens), visual_macs_ratio
        and prefill_flops.
    """
    out = model.generate(
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        max_new_tokens=max_new_tokens,
        pad_token_id=processor.pad_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        return_dict_in_generate=True,
        **{"do_sample": False, **options},
    )
    texts = processor.batch_decode(out.sequences[:, inputs["input_ids"].shape[1] :])
    trace: Trace = out.past_key_values.trace
    mask, marks = inputs["attention_mask"], inputs["input_ids"] == processor.image_token_id
    columns = (mask.sum(1) - marks.sum(1)).tolist()
    flops = prefill_flops(model, trace, columns)
    ratios = visual_macs_ratio(trace, model.config.text_config)
    return [
        {
            "answer": text,
            "route": {str(layer): name for layer, name in trace.route_of(b).items()},
            "rows": [rows[b] for rows in trace.visual_rows],
            "base_rows": trace.base_rows[b],
            "visual_macs_ratio": ratios[b],
            "prefill_flops": flops[b],
        }
        for b, text in enumerate(texts)
    ]


def evaluate(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    source: "DataModule",
    max_new_tokens: int,
) -> tuple[dict[str, float], list[Answer]]:
    """Answer every held-out question, with the true answers of earlier turns as history.

    In a distributed run each process answers its share and all return the same result.

    Returns:
        Metrics of metrics.json, and one row per question.
    """
    model.eval()
    rows = []
    for batch in progress(source.predict_dataloader(), "answering"):
        answers = answer(model, processor, prompts(batch), max_new_tokens)
        numbers = batch.sample_ids.tolist()
        for number, meta, found in zip(numbers, batch.meta, answers, strict=True):
            rows.append(
                {
                    "row": number,
                    "id": meta["id"],
                    "turn": meta["turn"],
                    "family": meta["family"],
                    "difficulty": meta["difficulty"],
                    "prompt": meta["question"],
                    "reference": meta["answer"],
                    "score": score(found["answer"], meta["answer"]),
                    **found,
                }
            )
    rows = _gather(rows)
    loss = language_loss(model, progress(source.val_dataloader(), "validating"))
    return {"val/loss": loss, **accuracies(rows), **cost_metrics(rows)}, rows


def prompts(batch: Batch) -> dict[str, Tensor]:
    """Inputs of `generate`: as in training, the instruction ends where the first answer begins."""
    inputs = batch.model_inputs()
    supervised = inputs.pop("labels") != IGNORE
    first = supervised.int().argmax(1)
    inputs["instruction_end"] = torch.where(supervised.any(1), first, supervised.shape[1])
    return inputs


def training_prompts(
    source: "DataModule", device: torch.device, count: int = 256
) -> list[dict[str, Tensor]]:
    """Questions drawn from the training data, asked as in an evaluation; to calibrate a router."""
    settings, processor = source.source, source.processor
    split = settings.split("train")
    assert split is not None
    questions = Questions(split, processor, settings.max_length, settings.on_error)
    order = np.random.default_rng(settings.seed).permutation(len(questions))[:count]
    samples = [questions[index] for index in order.tolist()]
    size = settings.eval_batch_size
    chunks = [samples[start : start + size] for start in range(0, len(samples), size)]
    batches = [collate(chunk, processor.pad_token_id, "left") for chunk in chunks]
    return [{k: v.to(device) for k, v in prompts(batch).items()} for batch in batches]


@torch.inference_mode()
def language_loss(model: DPNForConditionalGeneration, batches: Iterable[Batch]) -> float:
    """Mean cross entropy per supervised token, over all processes."""
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        if batch.num_supervised:
            inputs = batch.to(model.device).model_inputs()
            loss = model(**inputs, return_logits=False).loss
            total += torch.tensor([float(loss) * batch.num_supervised, batch.num_supervised])
    if several_processes():
        total = total.to(model.device)
        dist.all_reduce(total)
    return float(total[0] / total[1]) if total[1] else float("nan")


def ask(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    prompt: str,
    images: list[Image.Image],
    max_new_tokens: int,
    **options: Any,
) -> Answer:
    """Answer one question about some images; marks are added where the prompt has none."""
    missing = len(images) - prompt.count("<image>")
    message = {"role": "user", "content": "<image>\n" * max(0, missing) + prompt}
    inputs = dict(processor(messages=[message], images=images or None))
    return answer(model, processor, inputs, max_new_tokens, **options)[0]


def progress(batches: Any, title: str) -> Iterator[Batch]:
    """The batches, with a bar on a terminal or ten plain lines in a log."""
    total = len(batches)
    if sys.stderr.isatty():
        yield from track(batches, description=title, total=total, transient=True)
        return
    for number, batch in enumerate(batches, 1):
        yield batch
        if number * 10 // total > (number - 1) * 10 // total:
            log.info("%s %d/%d", title, number, total)


def _gather(rows: list[Answer]) -> list[Answer]:
    """Rows of all processes, each question once, in the order of the file.

    A question comes twice where a bad row was replaced by its neighbour, and where a process
    without questions of its own repeated the last one.
    """
    shares: list[Any] = [rows]
    if several_processes():
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, rows)
    unique = {(row["row"], row["turn"]): row for share in shares for row in share}
    return [unique[place] for place in sorted(unique)]
