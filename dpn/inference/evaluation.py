"""What a trained model is worth: on held-out questions, and on benchmarks."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchmetrics import SumMetric

from dpn.benchmarks import Benchmark, Question
from dpn.common.distributed import is_first_process
from dpn.common.progress import progress
from dpn.data.batch import IGNORE, Batch, DataError, Sample
from dpn.data.conversation import IMAGE, Turn
from dpn.data.rows import Questions
from dpn.inference.overlays import draw_overlays
from dpn.inference.questions import Journal, Row, answer_all, fingerprint
from dpn.metrics import accuracies, cost_metrics, score
from dpn.metrics.speed import answer_speed
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.runs.request import HELD_OUT

if TYPE_CHECKING:
    from dpn.data.module import DataModule

log = logging.getLogger(__name__)
#: Where pictures go in a folder of results.
OVERLAYS = Path("figures", "overlays")


def evaluate_held_out(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    source: "DataModule",
    max_new_tokens: int,
    folder: Path | None = None,
    model_files: Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    limit: int | None = None,
    overlays: int = 0,
    **options: Any,
) -> tuple[dict[str, float], list[Row]]:
    """Answer every held-out question of a data source, earlier turns answered as they should be.

    In a distributed run each process answers its share and all return the same result.

    Args:
        model: is put into eval mode.
        processor: of the model.
        source: the data; with `on_error=skip` bad rows are left out.
        max_new_tokens: upper limit of an answer.
        folder: of the results.
        model_files: folder of the model; a journal is kept in the folder of the results, and
            another model starts another one. None: there is none.
        batch_size: questions at a time; None: as the source says.
        workers: processes that load images; None: as the source says.
        limit: only so many questions, the first ones.
        overlays: how many pictures of what was kept are drawn, below `figures` in the folder.
        options: see `dpn.inference.answer`.

    Returns:
        Metrics of metrics.json, and one row per question.

    Raises:
        DataError: naming the bad rows, with `on_error=raise`.
    """
    model.eval()
    settings, split = source.source, source.source.split("val")
    rows: list[Row] = []
    if split is not None:
        exam = Questions(split, processor, settings.max_length)
        found, refused = answer_all(
            model,
            processor,
            exam,
            "answering",
            batch_size=batch_size or settings.eval_batch_size,
            max_new_tokens=max_new_tokens,
            journal=_journal(folder, HELD_OUT, model_files, max_new_tokens, options, split.file),
            limit=limit,
            workers=settings.num_workers if workers is None else workers,
            **options,
        )
        if refused and settings.on_error == "raise":
            raise DataError(" ".join(refused))
        for sentence in refused:
            log.warning("Skipped. %s", sentence)
        rows = [{**row, "score": score(row["answer"], row["reference"])} for row in found.values()]
        if overlays and folder and is_first_process():
            draw_overlays(model, processor, exam, found, overlays, folder / OVERLAYS / HELD_OUT)
    loss = language_loss(model, progress(source.val_share(), "validating"))
    metrics = {"val/loss": loss, **accuracies(rows), **cost_metrics(rows), **answer_speed(rows)}
    return metrics, rows


class BenchmarkExam:
    """Questions of a benchmark as prompts, images first.

    Args:
        name: of the benchmark.
        questions: some of its questions.
        processor: turns words and images into ids and pixels.
    """

    def __init__(self, name: str, questions: Sequence[Question], processor: DPNProcessor):
        self.name, self.questions, self.processor = name, questions, processor

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def lengths(self) -> list[int]:
        """Letters of each question; what has images counts as longer than what has none."""
        return [len(q.prompt) + 10_000 * len(q.images) for q in self.questions]

    def where(self, index: int) -> str:
        """See `Exam.where`."""
        return f"{self.name}, question {self.questions[index].id}"

    def make(self, index: int) -> Sample:
        """See `Exam.make`."""
        question = self.questions[index]
        turn = Turn("human", IMAGE * len(question.images) + question.prompt)
        ids, _ = self.processor.encode([turn], len(question.images))
        return Sample(
            input_ids=ids,
            labels=[IGNORE] * len(ids),
            images=[self.processor.transform(image()) for image in question.images],
            sample_id=index,
            meta={
                "benchmark": self.name,
                "row": index,
                "id": question.id,
                "family": question.category,
                "difficulty": None,
                "prompt": question.prompt,
                "reference": question.reference,
            },
        )


def evaluate_benchmark(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    benchmark: Benchmark,
    folder: Path,
    model_files: Path,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    workers: int = 0,
    overlays: int = 0,
    **options: Any,
) -> tuple[dict[str, float], list[Row]]:
    """Ask a benchmark's questions, write its official files and score.

    Args:
        model: in eval mode.
        processor: of the model.
        benchmark: what is asked.
        folder: of all results; the files go into one with the benchmark's name.
        model_files: folder of the model, whose name stands in the answer file; another model starts
            another journal.
        batch_size: questions at a time and process.
        max_new_tokens: upper limit of an answer; None: the benchmark's own.
        limit: only so many questions, the first ones.
        workers: processes that load images.
        overlays: how many pictures of what was kept are drawn, below `figures` in the folder.
        options: see `dpn.inference.answer`.

    Returns:
        Its metrics, `<benchmark>/<metric>`, and one row per question.

    Raises:
        DataError: naming what is wrong with a file, or each question that could not be asked; what
            was answered stands in the journal.
    """
    questions = benchmark.questions()[:limit]
    most = max_new_tokens or benchmark.max_new_tokens
    words = [(question.id, question.prompt) for question in questions]
    exam = BenchmarkExam(benchmark.name, questions, processor)
    found, refused = answer_all(
        model,
        processor,
        exam,
        benchmark.name,
        batch_size=batch_size,
        max_new_tokens=most,
        journal=_journal(folder, benchmark.name, model_files, most, options, words),
        workers=workers,
        **options,
    )
    if refused:
        raise DataError(
            f"{len(refused)} of {len(questions)} questions of {benchmark.name} could not be asked,"
            f" the answers to the others are kept: {' '.join(refused)}"
        )
    answers = [row["answer"] for row in found.values()]
    own = folder / benchmark.name
    if is_first_process():
        benchmark.write(questions, answers, own, model_files.resolve().name)
        if overlays:
            place = folder / OVERLAYS / benchmark.name
            draw_overlays(model, processor, exam, found, overlays, place)
    scores = benchmark.score(questions, answers, own)
    rows = [
        {**row, "score": value} for row, value in zip(found.values(), scores.samples, strict=True)
    ]
    metrics = {**scores.metrics, **_share(rows)}
    return {f"{benchmark.name}/{name}": value for name, value in metrics.items()}, rows


def _journal(folder: Path | None, exam: str, model_files: Path | None, *of: Any) -> Journal | None:
    """Where answers to an exam are written down that depend on all these things."""
    if folder is None or model_files is None:
        return None
    return Journal(folder / "journal", f"{exam}-{fingerprint(model_files, *of)}")


def _share(rows: Sequence[Row]) -> dict[str, float]:
    cost = cost_metrics(rows)
    names = ("cost/visual_macs_ratio", "cost/prefill_flops")
    return {name.removeprefix("cost/"): cost[name] for name in names if name in cost}


@torch.inference_mode()
def language_loss(model: DPNForConditionalGeneration, batches: Iterable[Batch]) -> float:
    """Mean cross entropy per supervised token, over all processes; of no token NaN."""
    loss, tokens = (SumMetric().set_dtype(torch.float64).to(model.device) for _ in range(2))
    for metric in (loss, tokens):
        metric.update(0.0)  # of a process without any
    for batch in batches:
        if batch.num_supervised:
            mean = model(**batch.to(model.device).model_inputs(), return_logits=False).loss
            loss.update(mean * batch.num_supervised)
            tokens.update(batch.num_supervised)
    return float(loss.compute() / tokens.compute())
