"""Repeated tries of one target, each of which must end as a user can bear it.

A try ends in one of three ways: its result is valid, it is refused with a sentence, or what is
bad is skipped and counted. A traceback, more than 10 seconds, more than 1 GiB of memory, or a
result that differs from what was stored, without a sentence, fails the test.
"""

import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from dpn.common.errors import DPNError

SECONDS, MEMORY = 10, 2**30
#: Outcome that a try may return instead of None for a valid result.
SKIPPED = "skipped"


class Hang(BaseException):
    """A try took longer than it may."""


class Fuzz:
    """Tries of one target until its time is over.

    Args:
        name: Name of the target; with `seed` and the number of a try it determines the input.
        seconds: Time for all tries.
        seed: Seed of the inputs.
        only: Number of the only try to make, to repeat a failure; None: all.
    """

    def __init__(self, name: str, seconds: float, seed: int, only: int | None = None) -> None:
        self.name, self.seconds, self.seed, self.only = name, seconds, seed, only
        self.outcomes: Counter[str] = Counter()

    def run(self, attempt: Callable[[Random], str | None], least: int = 20) -> None:
        """Repeat `attempt`, which makes an input from a random generator and uses it.

        Args:
            attempt: Function that returns None, or `SKIPPED`; its AssertionErrors are failures.
            least: Number of tries that are made even if they take longer.

        Raises:
            AssertionError: If a try ended in another way; says how to repeat it.
        """
        end, number = time.monotonic() + self.seconds, self.only or 0
        while number < least or time.monotonic() < end:
            self._try(attempt, number)
            number += 1
            if self.only is not None:
                break

    def _try(self, attempt: Callable[[Random], str | None], number: int) -> None:
        begun = time.monotonic()
        try:
            with _bounded():
                outcome = attempt(Random(f"{self.name}/{self.seed}/{number}")) or "valid"
        except (DPNError, OSError) as error:
            outcome = "sentence"
            if len(str(error)) < 10:
                outcome = f"no sentence: {error!r}"
        except (Exception, Hang):
            outcome = traceback.format_exc()
        took = time.monotonic() - begun
        if outcome in ("valid", "sentence", SKIPPED) and took <= SECONDS:
            self.outcomes[outcome] += 1
            return
        raise AssertionError(
            f"Try {number} of {self.name} with seed {self.seed} ({took:.1f} s) failed;"
            f" repeat it with --fuzz-seed={self.seed} --fuzz-only={number}.\n{outcome}"
        )


@contextmanager
def _bounded() -> Iterator[None]:
    """Limit the time and the further memory of a block."""

    def stop(*_: Any) -> None:
        raise Hang(f"It takes longer than {SECONDS} s.")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
