"""Run a function as a Hydra command line with help and readable errors.

Mistakes are found in the order of what it takes to find them. All names that do not exist are
reported together, with the nearest valid name, before torch is imported; the values are checked by
`dpn.config.preflight`, which needs it.
"""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from dpn.cli.diagnose import diagnose
from dpn.cli.errors import readable_errors
from dpn.cli.help import asks_for_help, help_of_config
from dpn.common.lifeline import die_with_launcher, has_launcher
from dpn.common.processes import is_first_process
from dpn.common.progress import has_terminal
from dpn.config.compose import CONFIG_DIR, MULTIRUN, compose_hydra, compose_jobs, request_of
from dpn.config.targets import refused_of_hydra
from dpn.runs.request import ConfigError, Request
from dpn.runs.sweep import Place, Sweep, run_job

# Lightning's warnings about things that are intended.
_NO_NEWS = (
    "The number of training batches",
    "Total length of `list` across ranks is zero",  # no held-out questions
    "The '.*dataloader' does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def front_door(
    config_name: str, place: Place | None = None
) -> Callable[[Callable[[Request], Any]], Callable[[], None]]:
    """Decorate a function of a request to make it a `main()` without arguments.

    Args:
        config_name: Name of the config to compose.
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
            if asks_for_help(sys.argv[1:]):
                print(help_of_config(run, config_name, CONFIG_DIR))
                return
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
                    problems = diagnose(config_name, sys.argv[1:], error) or [str(error)]
                    raise ConfigError(problems) from error
                for request, failure in failures[:-1]:
                    print(f"Failed: {' '.join(request.overrides)}\n{failure}\n", file=sys.stderr)
                if failures:
                    raise failures[-1][1]

        main.__doc__ = run.__doc__
        return main

    return decorate


def _sweep(config_name: str, place: Place | None) -> AbstractContextManager[Any]:
    """Return the context to run Hydra in: a `Sweep` if the command line is a multirun.

    Raises:
        ConfigError: If Hydra would build an object of a class that is not its own.
    """
    arguments, unknown = get_args_parser().parse_known_args()
    if unknown:
        raise ConfigError([f"`{flag}` is not a flag; --help lists them." for flag in unknown])
    looking = arguments.cfg or arguments.info or arguments.hydra_help or arguments.shell_completion
    if looking:
        return nullcontext()
    sweeping = arguments.multirun or MULTIRUN in arguments.overrides
    section = compose_hydra(config_name, arguments.overrides, sweeping)
    if refused := refused_of_hydra(section):
        raise ConfigError(refused)
    if section["sweeper"].get("params") and not sweeping:
        raise ConfigError(["`sweep` is a choice for multiruns; add -m."])
    if place is None or not sweeping:
        return nullcontext()
    return Sweep(*compose_jobs(config_name, arguments.overrides), place)


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
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    for message in _NO_NEWS:
        warnings.filterwarnings("ignore", message)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of DeepSpeed is about the run; saving any model imports it, GPU or not."""
    return "Setting accelerator to CPU" not in str(record.msg)


class _Console(logging.StreamHandler):
    """Handler that writes to the current `sys.stderr`, so that lines go above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
