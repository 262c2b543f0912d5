"""Configs as a front door's command line composes them: of a run, or of all jobs of a multirun."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dpn import projectors, routers
from dpn.config import renamed
from dpn.runs.path import SWEEP, key_of
from dpn.runs.request import Request

_PACKAGE = Path(__file__).parents[1]
CONFIG_DIR = next(d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir())
"""Inside an installed package, beside it in a checkout."""
MULTIRUN = "hydra.mode=MULTIRUN"


def compose(config_name: str = "train", overrides: Sequence[str] = ()) -> Request:
    """Compose a front door's config in Python, as its command line would."""
    with _hydra():
        return request_of(hydra.compose(config_name, list(overrides), return_hydra_config=True))


def compose_jobs(config_name: str, overrides: Sequence[str]) -> tuple[Request, list[Request]]:
    """What a multirun asks for, before anything is launched.

    Returns:
        The command itself, with what its sweeper is told among its overrides and the defaults in
        place of what is swept; and its jobs in the order of their numbers, none if a sweeper such
        as Optuna chooses them as it goes.
    """
    with _hydra() as loader:
        given = [*overrides, MULTIRUN]
        config = loader.load_configuration(config_name, given, run_mode=RunMode.MULTIRUN)
        sweeper = config.hydra.sweeper
        swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        swept += config.hydra.overrides.task
        config.hydra.overrides.task = swept
        if "BasicSweeper" not in sweeper._target_:
            return request_of(config), []
        parsed = OverridesParser.create(loader).parse_overrides(swept)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        composed = (loader.load_sweep_config(config, job) for job in jobs)
        return request_of(config), [request_of(job) for job in composed]


def request_of(config: Any, task: DictConfig | None = None) -> Request:
    """Split Hydra's config into the task's and what Hydra knows about the command.

    What a chosen part ignores is no part of the request, so that the same run is the same request.

    Args:
        config: with Hydra's own section.
        task: the same without it, if there is one already.
    """
    choices, node = config.hydra.runtime.choices, config.hydra
    sweeping = "MULTIRUN" in str(node.mode)
    basic = "BasicLauncher" in str(node.launcher.get("_target_"))
    if task is None:
        task = OmegaConf.create({k: v for k, v in config.items_ex(resolve=False) if k != "hydra"})
        OmegaConf.set_struct(task, True)
    renamed.update(task)
    idle = _ignored(task)
    for key in idle:
        OmegaConf.update(task, key, None)
    return Request(
        config=task,
        overrides=tuple(o for o in node.overrides.task if key_of(o) not in {"sweep", *idle}),
        experiment=choices.get("experiment") or "main",
        door=node.job.config_name,
        in_sweep=sweeping,
        launched=sweeping and not basic,
        model=choices.get("model") or "tiny",
        sweep=os.environ.get(SWEEP),
        job=OmegaConf.select(node, "job.num", throw_on_missing=False),
    )


def _ignored(config: DictConfig) -> list[str]:
    """Keys of what the chosen router and projector accept and never read."""
    keys = []
    for section, family in (("router", routers), ("projector", projectors)):
        node = config.get(section) or {}
        if (name := node.get("name")) in family.names():
            ignored = family.resolve(name).ignores
            keys += [f"{section}.{key}" for key in ignored if key in node]
    return keys


@contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    """Hydra over our configs; a front door that runs already may ask for another one."""
    state = GlobalHydra.instance()
    running, state.hydra = state.hydra, None
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            yield state.config_loader()
    finally:
        state.hydra = running
