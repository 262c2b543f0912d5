"""Dashboards of a run: routes during training, metrics and answers at the end.

Losses and costs of single steps are logged in `module.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from dpn.common.distributed import several_processes
from dpn.data.batch import Batch
from dpn.data.conversation import IMAGE
from dpn.data.rows import Questions
from dpn.inference.overlays import by_work, seen
from dpn.metrics import group_by, route_shares
from dpn.metrics.answers import Row
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.reports.overlays import SIDE, has_places, panel
from dpn.runs.request import Request
from dpn.training.loggers import Board, Example, Title

if TYPE_CHECKING:
    from dpn.data.module import DataModule

EXAMPLES = 12
"""Number of answers to show."""
EXAMPLES_TABLE = "examples"
"""Name of the table of answers."""
ALL = "all"
"""Family name of samples without one."""

Counts = dict[tuple[int, str], np.ndarray]


@contextmanager
def opened(trainer: Trainer, title: Title) -> Iterator[None]:
    """Open the trainer's boards, and close them when the block ends, however it ends."""
    failed = True
    try:
        for board in boards_of(trainer):
            board.open(title)
        yield
        failed = False
    finally:
        for board in boards_of(trainer):
            board.close(failed)


def boards_of(trainer: Trainer) -> list[Board]:
    """The trainer's loggers that show more than numbers."""
    return [logger for logger in trainer.loggers if isinstance(logger, Board)]


def title_of(request: Request, identity: str, keep: float | None) -> Title:
    """A title that differs between the runs of a sweep: model/router/keep/seed."""
    config = request.config
    share = [] if keep is None else [f"keep {keep:g}"]
    parts = [request.model, config.router.name, *share, f"seed {config.seed}"]
    return Title("/".join(parts), identity, request.sweep)


class RouteHistograms(Callback):
    """Shows after each validation how often each option was chosen, by layer and family."""

    def __init__(self) -> None:
        self._counts: Counts = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts."""
        self._counts = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the option chosen for each sample."""
        for decision in outputs["trace"].decisions:
            size = len(decision.names)
            for sample, expert in zip(decision.samples, decision.experts.tolist(), strict=True):
                if size:
                    family = str(batch.meta[sample].get("family") or ALL)
                    key = decision.layer, family
                    self._counts.setdefault(key, np.zeros(size, dtype=int))[expert] += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the histograms, summed over all processes."""
        boards = [] if trainer.sanity_checking else boards_of(trainer)
        if not boards:
            return
        step = max(0, trainer.global_step - 1)  # Lightning's loggers count steps from 0
        for (layer, family), counts in sorted(_over_processes(self._counts).items()):
            for board in boards:
                board.log_histogram(f"routes/{layer}/{family}", counts, step)


def _over_processes(counts: Counts) -> Counts:
    if not several_processes():
        return counts
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, counts)
    whole: Counts = {}
    for key, own in (item for part in parts for item in part.items()):
        whole[key] = whole.get(key, 0) + own
    return whole


def show_results(
    trainer: Trainer,
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    source: "DataModule",
    metrics: Mapping[str, float],
    rows: Sequence[Row],
    step: int,
) -> None:
    """Show the results of an evaluation on all boards; called on the first process.

    Args:
        trainer: Trainer whose loggers are used.
        model: Evaluated model, in eval mode.
        processor: The model's processor.
        source: Data of the evaluation.
        metrics: Content of metrics.json.
        rows: Content of rows.jsonl.
        step: Number of training steps.
    """
    if boards := boards_of(trainer):
        examples = _examples(model, processor, source, rows)
        for board in boards:
            board.log_results(results(metrics, rows), EXAMPLES_TABLE, examples, step)


def results(metrics: Mapping[str, float], rows: Sequence[Row]) -> dict[str, float]:
    """The metrics, and for each layer and family the share of prompts by chosen option."""
    groups = group_by(rows, "family") or {ALL: list(rows)}
    return dict(metrics) | {
        f"routes/{layer}/{family}/{option}": share
        for family, group in groups.items()
        for layer, shares in route_shares(group).items()
        for option, share in shares.items()
    }


def _examples(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    source: "DataModule",
    rows: Sequence[Row],
) -> list[Example]:
    """Answered questions in the order of their visual work, least first."""
    split = source.source.split("val")
    if split is None:
        return []
    questions = Questions(split, processor, source.source.max_length)
    named = {(row["row"], row["turn"]): row for row in rows}
    shown = by_work(named, EXAMPLES)
    pictures = [
        _picture(*seen(model, processor, questions.make(questions.place_of(*k)))) for k in shown
    ]
    widest = max((picture.shape[1] for picture in pictures), default=0)
    return [
        Example(_widened(picture, widest), _fields(named[key]))
        for key, picture in zip(shown, pictures, strict=True)
    ]


def _picture(pixels: np.ndarray, owners: Sequence[np.ndarray]) -> np.ndarray:
    """The image and, beside it, what is left of it at each layer where that changes."""
    changed = [o for n, o in enumerate(owners) if n == 0 or (o != owners[n - 1]).any()]
    shown = [None, *changed] if has_places(owners[0]) else [None]
    panels = [np.asarray(panel(pixels, owner)) for owner in shown]
    return np.concatenate([_widened(one, SIDE) for one in panels], 1)


def _widened(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture padded with white to a common width."""
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)


def _fields(row: Row) -> dict[str, str | float]:
    """Columns of the table of answers from a row of rows.jsonl."""
    route = ", ".join(f"layer {layer}: {option}" for layer, option in row["route"].items())
    return {
        "family": str(row["family"] or ALL),
        "question": row["prompt"].replace(IMAGE, "").strip(),
        "answer": row["answer"],
        "reference": row["reference"],
        "score": row["score"],
        "route": route or "none",
        "rows": " ".join(map(str, row["rows"])),
        "visual MACs": row["visual_macs_ratio"],
    }
