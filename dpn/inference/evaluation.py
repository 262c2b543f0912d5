"""Evaluate a trained model on held-out questions and on benchmarks."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchmetrics import SumMetric

from dpn.benchmarks import Benchmark, Question
from dpn.common.processes import is_first_process
from dpn.common.progress import progress
from dpn.common.text import one_line
from dpn.data.batch import IGNORE, Batch, DataError, Sample
from dpn.data.conversation import IMAGE, Turn
from dpn.data.rows import Questions
from dpn.inference.overlays import by_work, draw_overlays
from dpn.inference.questions import Journal, answer_all, fingerprint
from dpn.metrics import accuracies, cost_metrics
from dpn.metrics import build as build_rule
from dpn.metrics.answers import Row
from dpn.metrics.speed import answer_speed
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.runs.request import HELD_OUT

if TYPE_CHECKING:
    from dpn.data.module import DataModule

log = logging.getLogger(__name__)
#: Subfolder of figures in a result folder.
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
    method: str = "",
    **options: Any,
) -> tuple[dict[str, float], list[Row]]:
    """Answer every held-out question of a data source and score the answers.

    Earlier turns of a conversation contain the reference answers. In a distributed run, each
    process answers a part of the questions and all return the same result.

    Args:
        model: Model; it is put into eval mode.
        processor: Processor of the model.
        source: Data module; with `on_error=skip` bad rows are left out.
        max_new_tokens: Maximum number of tokens in an answer.
        folder: Result folder.
        model_files: Folder of the model. If given, a journal of answers for exactly this model is
            kept in the result folder, from which an interrupted evaluation continues.
        batch_size: Batch size per process; None for the one of the source.
        workers: Processes that load images; None for the number of the source.
        limit: Number of questions to ask, from the first one; None for all.
        method: Name of the method that replaced the one of the model's folder, for rows and files.
        options: Decoding options, see `dpn.inference.answer`.

    Returns:
        The metrics for metrics.json, and one row per question.

    Raises:
        DataError: If rows are bad and `on_error=raise`; names the rows.
    """
    model.eval()
    settings, split = source.source, source.source.split("val")
    rows: list[Row] = []
    if split is not None:
        questions = Questions(split, processor, settings.max_length)
        key = (*_replaced(model, method), max_new_tokens, options, split.file)
        found, refused = answer_all(
            model,
            processor,
            questions,
            "answering",
            batch_size=batch_size or settings.eval_batch_size,
            max_new_tokens=max_new_tokens,
            journal=_journal(
                folder, HELD_OUT, model_files, *key, max_new_tokens, options, split.file
            ),
            limit=limit,
            workers=settings.num_workers if workers is None else workers,
            **options,
        )
        if refused and settings.on_error == "raise":
            raise DataError(" ".join(refused))
        for sentence in refused:
            log.warning("Skipped. %s", sentence)
        rule = build_rule(settings.metric)
        named = {"method": method} if method else {}
        rows = [
            {
                **row,
                **named,
                "score": rule.score(row["answer"], row["reference"]),
                "metric": settings.metric,
            }
            for row in found.values()
        ]
    loss = language_loss(model, progress(source.val_share(), "validating"))
    metrics = {"val/loss": loss, **accuracies(rows), **cost_metrics(rows), **answer_speed(rows)}
    return metrics, rows


def draw_held_out(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    source: "DataModule",
    rows: Sequence[Row],
    count: int,
    folder: Path,
) -> None:
    """Draw overlay figures of answers to held-out questions, in `figures` of the result folder.

    Args:
        model: Model in eval mode.
        processor: Processor of the model.
        source: Data module of the questions.
        rows: Rows of `evaluate_held_out`.
        count: Number of figures.
        folder: Result folder.
    """
    split = source.source.split("val")
    if split is None:
        return
    questions = Questions(split, processor, source.source.max_length)
    named = {(row["row"], row["turn"]): row for row in rows}
    found = {questions.place_of(*key): named[key] for key in by_work(named, count)}
    draw_overlays(model, processor, questions, found, count, folder / OVERLAYS / HELD_OUT)


def draw_benchmark(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    benchmark: Benchmark,
    rows: Sequence[Row],
    count: int,
    folder: Path,
) -> None:
    """Draw overlay figures of answers to a benchmark; see `draw_held_out` for the arguments."""
    questions = BenchmarkQuestions(benchmark.name, benchmark.questions(), processor)
    found = {row["row"]: row for row in rows}
    draw_overlays(model, processor, questions, found, count, folder / OVERLAYS / benchmark.name)


class BenchmarkQuestions:
    """Question set of a benchmark; images come first in the prompts.

    Args:
        name: Name of the benchmark.
        questions: Questions of the benchmark, all or some.
        processor: Processor of the model, which encodes text and images.
    """

    def __init__(self, name: str, questions: Sequence[Question], processor: DPNProcessor):
        self.name, self.questions, self.processor = name, questions, processor

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def lengths(self) -> list[int]:
        """Number of characters of each question, plus 10,000 for each image."""
        return [len(q.prompt) + 10_000 * len(q.images) for q in self.questions]

    def where(self, index: int) -> str:
        return f"{self.name}, question {self.questions[index].id}"

    def make(self, index: int) -> Sample:
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
    method: str = "",
    **options: Any,
) -> tuple[dict[str, float], list[Row]]:
    """Answer a benchmark's questions, write its official files and score the answers.

    Args:
        model: Model in eval mode.
        processor: Processor of the model.
        benchmark: Benchmark to run.
        folder: Result folder; files are written to a subfolder with the benchmark's name.
        model_files: Folder of the model, whose name is written to the answer file. Answers are kept
            in a journal for exactly this model, from which an interrupted evaluation continues.
        batch_size: Batch size per process.
        max_new_tokens: Maximum number of tokens in an answer; None for the benchmark's own.
        limit: Number of questions to ask, from the first one; None for all.
        workers: Processes that load images.
        method: Name of the method that replaced the one of the model's folder, for rows and files.
        options: Decoding options, see `dpn.inference.answer`.

    Returns:
        Metrics named `<benchmark>/<metric>`, and one row per question.

    Raises:
        DataError: If a file is invalid or a question cannot be asked; names the file or question.
            Answers to other questions are kept in the journal.
    """
    with _own_code(benchmark.name):
        questions = benchmark.questions()[:limit]
    most = max_new_tokens or benchmark.max_new_tokens
    words = [(question.id, question.prompt) for question in questions]
    question_set = BenchmarkQuestions(benchmark.name, questions, processor)
    key = (*_replaced(model, method), most, options, words)
    found, refused = answer_all(
        model,
        processor,
        question_set,
        benchmark.name,
        batch_size=batch_size,
        max_new_tokens=most,
        journal=_journal(folder, benchmark.name, model_files, *key),
        workers=workers,
        **options,
    )
    if refused:
        raise DataError(
            f"{len(refused)} of {len(questions)} questions of {benchmark.name} could not be asked;"
            f" the answers to the others are kept: {' '.join(refused)}"
        )
    answers = [row["answer"] for row in found.values()]
    own = folder / benchmark.name
    if is_first_process():
        with _own_code(benchmark.name):
            model_id = " ".join(filter(None, (model_files.resolve().name, method)))
            benchmark.write(questions, answers, own, model_id)
    with _own_code(benchmark.name):
        scores = benchmark.score(questions, answers, own)
    named = {"method": method} if method else {}
    rows = [
        {**row, **named, "score": value}
        for row, value in zip(found.values(), scores.samples, strict=True)
    ]
    metrics = {**scores.metrics, **_share(rows)}
    return {f"{benchmark.name}/{name}": value for name, value in metrics.items()}, rows


@contextmanager
def _own_code(name: str) -> Iterator[None]:
    """Turn unexpected errors of a benchmark's own code into DataErrors, so that the other
    benchmarks of a suite are still evaluated. Their tracebacks are logged.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        log.exception("%s failed.", name)
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        raise DataError(f"{name} cannot be evaluated ({reason}).") from error


def _journal(folder: Path | None, name: str, model_files: Path | None, *of: Any) -> Journal | None:
    """Return the journal of a question set, whose answers depend on model files and `of`."""
    if folder is None or model_files is None:
        return None
    return Journal(folder / "journal", f"{name}-{fingerprint(model_files, *of)}")


def _replaced(model: DPNForConditionalGeneration, method: str) -> list[Any]:
    """Return what answers depend on if a method was replaced; empty for the folder's own."""
    return [method, model.config.router_config, model.config.projector_config] if method else []


def _share(rows: Sequence[Row]) -> dict[str, float]:
    cost = cost_metrics(rows)
    names = ("cost/visual_macs_ratio", "cost/prefill_flops")
    return {name.removeprefix("cost/"): cost[name] for name in names if name in cost}


@torch.inference_mode()
def language_loss(model: DPNForConditionalGeneration, batches: Iterable[Batch]) -> float:
    """Compute the mean cross entropy per supervised token, over all processes; NaN without any."""
    loss, tokens = (SumMetric().set_dtype(torch.float64).to(model.device) for _ in range(2))
    for metric in (loss, tokens):
        metric.update(0.0)  # for a process without batches
    for batch in batches:
        if batch.num_supervised:
            mean = model(**batch.to(model.device).model_inputs(), return_logits=False).loss
            loss.update(mean * batch.num_supervised)
            tokens.update(batch.num_supervised)
    return float(loss.compute() / tokens.compute())
