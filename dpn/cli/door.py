"""Run a function as a Hydra command line with readable errors.

All mistakes in overrides are reported together, one sentence each, with the nearest valid name.
"""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from dpn.cli.diagnose import diagnose
from dpn.common import early_stop
from dpn.common.distributed import is_first_process
from dpn.common.errors import DPNError
from dpn.common.lifeline import die_with_launcher, has_launcher
from dpn.common.progress import has_terminal
from dpn.config.compose import CONFIG_DIR, MULTIRUN, compose_jobs, request_of
from dpn.runs.request import ConfigError, Request
from dpn.runs.signals import Interrupted
from dpn.runs.sweep import Place, Sweep, run_job

# Lightning's warnings about things that are intended.
_NO_NEWS = (
    "The number of training batches",
    "The '.*dataloader' does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def front_door(
    config_name: str, check: Callable[[Request], None], place: Place | None = None
) -> Callable[[Callable[[Request], Any]], Callable[[], None]]:
    """Decorate a function of a request to make it a `main()` without arguments.

    Args:
        config_name: Name of the config to compose.
        check: Check that finds further problems of a command line that Hydra refused.
        place: Function that returns the result folder of a request, if each request has its own. A
            multirun is then a `dpn.runs.sweep.Sweep`.
    """

    def decorate(run: Callable[[Request], Any]) -> Callable[[], None]:
        failures: list[tuple[Request, Exception]] = []

        @functools.wraps(run)
        def task(config: DictConfig) -> Any:
            request = request_of(HydraConfig.instance().cfg, config)
            set_up_logging(request.job)
            if place is not None and request.in_sweep:
                return run_job(request, run, place)
            try:
                return run(request)
            except Exception as error:
                if request.launched:
                    raise  # the launcher needs the error
                # Hidden from Hydra, which would print its own text; other jobs continue.
                failures.append((request, error))

        def main() -> None:
            failures.clear()
            set_up_logging()
            die_with_launcher()
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise errors instead of printing them
            door = hydra.main(str(CONFIG_DIR), config_name, version_base="1.3")
            with readable_errors():
                try:
                    with _sweep(config_name, place):
                        door(task)()
                except HydraException as error:
                    problems = diagnose(config_name, sys.argv[1:], check) or [str(error)]
                    raise ConfigError(problems) from error
                for request, failure in failures[:-1]:
                    print(f"Failed: {' '.join(request.overrides)}\n{failure}\n", file=sys.stderr)
                if failures:
                    raise failures[-1][1]

        main.__doc__ = run.__doc__
        return main

    return decorate


def _sweep(config_name: str, place: Place | None) -> AbstractContextManager[Any]:
    """Return the context to run Hydra in: a `Sweep` if the command line is a multirun."""
    arguments = get_args_parser().parse_args()
    looking = arguments.cfg or arguments.info or arguments.help or arguments.hydra_help
    sweeping = arguments.multirun or MULTIRUN in arguments.overrides
    if place is None or looking or not sweeping:
        return nullcontext()
    return Sweep(*compose_jobs(config_name, arguments.overrides), place)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print expected errors as one sentence and exit; other errors are raised as usual."""
    early_stop.imported()
    try:
        yield
    except ConfigError as error:
        _fail(str(error), 2)
    except (DPNError, OSError) as error:
        _fail(str(error), 1)
    except Interrupted as error:
        message = f"Stopped by {error}; the same command continues from the last checkpoint."
        _fail(message, early_stop.exit_status(str(error)))
    except KeyboardInterrupt:
        _fail("Stopped by SIGINT.", early_stop.exit_status("SIGINT"))


def set_up_logging(job: int | None = None) -> None:
    """Log plain lines to the terminal; progress lines are hidden if there is a progress bar.

    Args:
        job: Number of the job, which starts each line if jobs run in parallel.
    """
    console = _Console()
    beside = f"job {job}: " if job is not None and has_launcher() else ""
    console.setFormatter(logging.Formatter(f"{beside}%(message)s"))
    console.addFilter(lambda r: not (r.name == "dpn.common.progress" and has_terminal()))
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.basicConfig(level=level, handlers=[console], force=True)
    for name in ("lightning.pytorch", "lightning.fabric", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NO_NEWS:
        warnings.filterwarnings("ignore", message)


class _Console(logging.StreamHandler):
    """Handler that writes to the current `sys.stderr`, so that lines go above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
