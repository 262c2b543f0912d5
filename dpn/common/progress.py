"""Progress of long work: a bar on a terminal, ten plain lines in a log or beside other jobs."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpn.common.lifeline import has_launcher
from dpn.common.table import terminal

log = logging.getLogger(__name__)
T = TypeVar("T")


def has_terminal() -> bool:
    """Whether a bar can be drawn: there is a terminal, and no other process draws there too."""
    return sys.stderr.isatty() and not has_launcher()


class Bar:
    """A progress bar, drawn until it is closed; where there is no terminal, nothing is drawn.

    Args:
        title: What is done.
        total: Steps in all.
        done: Steps done before.
        drawn: False: draw nothing on a terminal either.
    """

    def __init__(self, title: str, total: int, done: int = 0, drawn: bool = True) -> None:
        self.drawn = drawn and has_terminal()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=terminal(stderr=True),
            redirect_stdout=sys.stdout.isatty(),
            transient=True,
            disable=not self.drawn,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, note="")
        self._bar.start()

    def move(self, done: int, note: str | None = None) -> None:
        """Show the number of steps done and, if given, a new note beside the bar."""
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._bar.update(self._task, completed=done, **fields)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def progress(
    items: Iterable[T],
    title: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda item: 1,
    unit: str = "steps",
) -> Iterator[T]:
    """Yield the items and show how many are done, how many a second, and the time left.

    Args:
        items: E.g. batches.
        title: What is done.
        total: Sum of all sizes; default: the number of items.
        size: Size of an item, e.g. its samples; asked after the caller is done with it.
        unit: Unit of the sizes.
    """
    whole: int = len(items) if total is None else total  # type: ignore[arg-type]
    start, done = time.perf_counter(), 0
    with closing(Bar(title, whole)) as bar:
        for item in items:
            yield item
            before, done = done, done + size(item)
            rate = done / (time.perf_counter() - start)
            bar.move(done, f"{rate:.1f} {unit}/s")
            if not bar.drawn and done * 10 // whole > before * 10 // whole:
                left = (whole - done) / rate
                log.info("%s %d/%d  %.1f %s/s  %.0f s left", title, done, whole, rate, unit, left)
