"""How far long work is: a bar on a terminal, ten plain lines in a log and beside other jobs."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpn.common.lifeline import hangs

log = logging.getLogger(__name__)
T = TypeVar("T")


def has_terminal() -> bool:
    """Whether a bar can be drawn: there is a terminal, and no other process draws there too."""
    return sys.stderr.isatty() and not hangs()


def progress(
    items: Iterable[T],
    title: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda item: 1,
    unit: str = "steps",
) -> Iterator[T]:
    """The items, and on the way how many are done, how many a second, and the time left.

    Args:
        items: e.g. batches.
        title: what is done.
        total: sum of all sizes; default: the number of items.
        size: of an item, e.g. its samples; asked after the caller is done with it.
        unit: of the sizes.
    """
    whole: int = len(items) if total is None else total  # type: ignore[arg-type]
    shown = _bar if has_terminal() else _lines
    yield from shown(items, title, whole, size, unit)


def _bar(
    items: Iterable[Any], title: str, total: int, size: Callable[[Any], int], unit: str
) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start, done = time.perf_counter(), 0
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=total, rate="")
        for item in items:
            yield item
            done += size(item)
            rate = done / (time.perf_counter() - start)
            bar.update(task, completed=done, rate=f"{rate:.1f} {unit}/s")


def _lines(
    items: Iterable[Any], title: str, total: int, size: Callable[[Any], int], unit: str
) -> Iterator[Any]:
    start, done = time.perf_counter(), 0
    for item in items:
        yield item
        before, done = done, done + size(item)
        if done * 10 // total > before * 10 // total:
            rate = done / (time.perf_counter() - start)
            left = (total - done) / rate
            log.info("%s %d/%d  %.1f %s/s  %.0f s left", title, done, total, rate, unit, left)
