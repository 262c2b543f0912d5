"""Hydra's command line with readable errors: composes a config for a front door.

A mistake in an override costs one sentence with the nearest valid name, all mistakes at once.
"""

import functools
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from dpn.common.distributed import is_first_process
from dpn.common.lifeline import follow, hangs
from dpn.common.progress import has_terminal
from dpn.compose import CONFIG_DIR, MULTIRUN, compose, compose_jobs, request_of
from dpn.data.batch import DataError
from dpn.runs.folder import RunError
from dpn.runs.request import ConfigError, Request
from dpn.runs.signals import Interrupted
from dpn.runs.sweep import Place, Sweep, run_job
from dpn.schema import check_arguments, matches, nearest

# Warnings of Lightning about what is so on purpose.
_NO_NEWS = (
    "The number of training batches",
    "The '.*dataloader' does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def front_door(
    config_name: str, check: Callable[[Request], None], place: Place | None = None
) -> Callable[[Callable[[Request], Any]], Callable[[], None]]:
    """Make a `main()` without arguments out of a function that takes a request.

    Args:
        config_name: of the config to compose.
        check: pre-flight, to find further problems of a command line that Hydra refused.
        place: where the results of a request are, if every one has a folder of its own: then a
            multirun is a `dpn.runs.sweep.Sweep`.
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
                    raise  # its launcher has to know
                # Kept from Hydra, which would print its own text; the other jobs of a sweep go on.
                failures.append((request, error))

        def main() -> None:
            failures.clear()
            set_up_logging()
            follow()
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, not to its printer
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
    """What surrounds Hydra where the command line asks for a multirun."""
    arguments = get_args_parser().parse_args()
    looking = arguments.cfg or arguments.info or arguments.help or arguments.hydra_help
    sweeping = arguments.multirun or MULTIRUN in arguments.overrides
    if place is None or looking or not sweeping:
        return nullcontext()
    return Sweep(*compose_jobs(config_name, arguments.overrides), place)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors whose sentence says it all end the program with that sentence, others as ever."""
    try:
        yield
    except ConfigError as error:
        _fail(str(error), 2)
    except (RunError, DataError, OSError) as error:
        _fail(str(error), 1)
    except Interrupted as error:
        message = f"Stopped by {error}; the same command goes on from the last checkpoint."
        _fail(message, 130 if str(error) == "SIGINT" else os.EX_TEMPFAIL)  # 75: worth a requeue


def read_arguments(function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """key=value arguments for an annotated function, for front doors without config.

    Raises:
        ConfigError: with everything that does not fit the function's signature.
    """
    pairs = [argument.partition("=") for argument in arguments]
    problems = [f"`{key}` is not of the form key=value." for key, sign, _ in pairs if not sign]
    hints = inspect.get_annotations(function, eval_str=True)
    values = {
        key: text if matches(text, hints.get(key, str)) else _value(text)
        for key, sign, text in pairs
        if sign
    }
    problems += check_arguments("", function, values)
    if problems:
        raise ConfigError(problems)
    return values


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def set_up_logging(job: int | None = None) -> None:
    """Plain lines on the terminal; a progress bar there replaces lines of progress.

    Args:
        job: number that lines of a job beside others begin with.
    """
    console = _Console()
    beside = f"job {job}: " if job is not None and hangs() else ""
    console.setFormatter(logging.Formatter(f"{beside}%(message)s"))
    console.addFilter(lambda r: not (r.name == "dpn.common.progress" and has_terminal()))
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.basicConfig(level=level, handlers=[console], force=True)
    for name in ("lightning.pytorch", "lightning.fabric", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NO_NEWS:
        warnings.filterwarnings("ignore", message)


class _Console(logging.StreamHandler):
    """Writes to what `sys.stderr` is at the time, so that lines go above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def diagnose(
    config_name: str, arguments: Sequence[str], check: Callable[[Request], None]
) -> list[str]:
    """Every problem of a command line that Hydra refused, one sentence each."""
    overrides = [a for a in arguments if not a.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        return [
            f"`{error.override}` can not be read as key=value; put quotes around a value with"
            f" special characters: '{_quoted(error.override)}'."
        ]
    # A swept value is looked at by itself: `router=static,dpee` has one bad choice.
    singles = [
        [f"{p.get_key_element()}={v}" for v in p.sweep_string_iterator()]
        if p.is_discrete_sweep()
        else [str(p.input_line)]
        for p in parsed
    ]
    base = [choices[0] for choices in singles]
    jobs = [
        [*base[:i], c, *base[i + 1 :]] for i, choices in enumerate(singles) for c in choices[1:]
    ]
    found = [_diagnose_job(config_name, job, check) for job in [base, *jobs]]
    return list(dict.fromkeys(sentence for sentences in found for sentence in sentences))


def _diagnose_job(
    config_name: str, overrides: list[str], check: Callable[[Request], None]
) -> list[str]:
    problems: list[str] = []
    unknown: list[str] = []
    while True:
        try:
            request = compose(config_name, overrides)
            break
        except HydraException as error:
            bad = _culprit(error, overrides)
            if bad is None:
                return [*problems, _not_installed(error) or str(error)]
            overrides = [o for o in overrides if o != bad]
            if isinstance(error, MissingConfigException):
                group, _, choice = bad.partition("=")
                problems.append(
                    _not_installed(error)
                    or f"`{bad}` is no choice of {group}; {nearest(choice, error.options or ())}"
                )
            elif str(error).startswith("Could not override"):
                unknown.append(bad)
            else:
                reason = " ".join(str(error.__cause__ or error).split())
                problems.append(f"`{bad}` does not fit: {reason}")
    for override in unknown:
        key = re.split(r"[=@]", override.lstrip("+~"))[0]
        problems.append(f"`{key}` is no setting; {nearest(key, _keys(request.config))}")
    try:
        check(request)
    except ConfigError as error:
        problems.extend(error.problems)
    return problems


def _not_installed(error: HydraException) -> str | None:
    """A sentence about a plugin of Hydra that one of our configs names."""
    place, _, choice = str(getattr(error, "missing_cfg_file", None)).rpartition("/")
    extra = {"submitit_slurm": "slurm", "optuna": "optuna", "ray": "ray"}.get(choice)
    if not place.startswith("hydra/") or extra is None:
        return None
    return f"`{place}={choice}` is not installed; install it: pip install 'dpn[{extra}]'."


def _culprit(error: HydraException, overrides: Sequence[str]) -> str | None:
    """The override that an error of Hydra is about."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        wanted = [o for o in overrides if o.lstrip("+") == f"{group}={choice}"]
    else:
        wanted = [
            o
            for o in overrides
            if f"'{re.split('=', o.lstrip('+~'))[0]}'" in str(error) or o in str(error)
        ]
    return max(wanted, key=len, default=None)


def _keys(config: DictConfig) -> list[str]:
    """All dotted keys of a config, and its groups."""

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        keys = [f"{prefix}{key}" for key in node]
        return keys + [k for key in node for k in walk(node[key], f"{prefix}{key}.")]

    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]
    return sorted({*walk(OmegaConf.to_container(config, resolve=False), ""), *groups})


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    return f'{key}="{value}"'


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
