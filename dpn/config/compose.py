"""Compose a config from YAML files and overrides, or the configs of all jobs of a multirun.

The result is a `Request`: the config, and what Hydra knows about the command line. Nothing is
checked here (see `dpn.config.preflight`), and nothing is built (see `dpn.config.build`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dpn.common.method_files import CONFIG_DIR as CONFIG_DIR
from dpn.config import renamed
from dpn.runs.path import SWEEP, key_of
from dpn.runs.request import ConfigError, Request
from dpn.runs.typed import as_typed

MULTIRUN = "hydra.mode=MULTIRUN"


def _trainable_routers() -> str:
    """Names, with commas, of the routers that models are trained with at a `router.keep`."""
    from dpn import routers  # imports torch, which most command lines need later or not at all

    files = sorted(path.stem for path in (CONFIG_DIR / "router").glob("*.yaml"))
    kinds = {name: routers.resolve(name) for name in files if name in routers.names()}
    return ",".join(
        name
        for name, kind in kinds.items()
        if kind.trainable and (kind.meets_keep != "never" or "keep" in kind.ignores)
    )


OmegaConf.register_new_resolver("dpn.trainable_routers", _trainable_routers, replace=True)


def compose(config_name: str = "train", overrides: Sequence[str] = ()) -> Request:
    """Compose a config in Python, as the command line does.

    Args:
        config_name: Name of a file in `configs/`, e.g. `train`, `eval` or `bench`.
        overrides: Overrides in Hydra's syntax, e.g. `["router=dpe", "router.keep=0.5"]`.
    """
    with _hydra(config_name, overrides):
        return request_of(hydra.compose(config_name, list(overrides), return_hydra_config=True))


def compose_names(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a config as Hydra does, without a look at its values; nothing heavy is imported.

    Raises:
        HydraException: If an override names a group, a choice or a setting that does not exist.
    """
    with _hydra(config_name, overrides) as loader:
        return loader.load_configuration(config_name, list(overrides), run_mode=RunMode.RUN)


def compose_hydra(config_name: str, overrides: Sequence[str], multirun: bool) -> dict[str, Any]:
    """Return section `hydra` of a command line, without resolving its references."""
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    with _hydra(config_name, overrides) as loader:
        config = loader.load_configuration(config_name, list(overrides), run_mode=mode)
    return OmegaConf.to_container(config.hydra, resolve=False)  # type: ignore[return-value]


def compose_jobs(config_name: str, overrides: Sequence[str]) -> tuple[Request, list[Request]]:
    """Compose a multirun and each of its jobs, before anything is launched.

    Returns:
        The multirun, whose overrides include the sweeper's parameters and whose config holds the
        default of every swept value; and its jobs in order. There are no jobs if the sweeper, e.g.
        Optuna, chooses them while it runs.
    """
    with _hydra(config_name, overrides) as loader:
        config = loader.load_configuration(
            config_name, [*overrides, MULTIRUN], run_mode=RunMode.MULTIRUN
        )
        sweeper = config.hydra.sweeper
        params = as_typed(sweeper.params) if sweeper.get("params") else {}
        swept = [f"{key}={value}" for key, value in params.items()]
        swept += _given(config.hydra)
        config.hydra.overrides.task = swept
        if "BasicSweeper" not in sweeper._target_:
            return request_of(config), []
        parsed = OverridesParser.create(loader).parse_overrides(swept)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        composed = [loader.load_sweep_config(config, job) for job in jobs]  # names come first
        return request_of(config), [request_of(job) for job in composed]


def request_of(config: Any, task: DictConfig | None = None) -> Request:
    """Separate the config from what Hydra knows about the command line.

    Arguments that the chosen router or projector ignores are set to null, and their overrides are
    left out, so that equal runs have equal requests. Sizes come from the folder of `init.model`, if
    there is one, see `dpn.config.adopt`.

    Args:
        config: Config with section `hydra`.
        task: The same config without section `hydra`, if it exists already.
    """
    choices, node = config.hydra.runtime.choices, config.hydra
    sweeping = "MULTIRUN" in str(node.mode)
    basic = "BasicLauncher" in str(node.launcher.get("_target_"))
    if task is None:
        task = OmegaConf.create({k: v for k, v in config.items_ex(resolve=False) if k != "hydra"})
        OmegaConf.set_struct(task, True)
    renamed.update(task)
    if node.job.config_name in ("eval", "verify"):
        _only_given(task, _given(node))
    if OmegaConf.select(task, "init.model", throw_on_resolution_failure=False):
        from dpn.config.adopt import adopt  # reads model folders, which takes seconds to import

        adopt(task, _given(node))
    ignored = _ignored(task)
    for key in ignored:
        OmegaConf.update(task, key, None)
    return Request(
        config=task,
        overrides=tuple(o for o in _given(node) if key_of(o) not in {"sweep", *ignored}),
        experiment=choices.get("experiment") or "main",
        door=node.job.config_name,
        in_sweep=sweeping,
        launched=sweeping and not basic,
        model=choices.get("model") or "tiny",
        sweep=os.environ.get(SWEEP),
        job=OmegaConf.select(node, "job.num", throw_on_missing=False),
        searching=sweeping and "BasicSweeper" not in str(node.sweeper.get("_target_")),
    )


def _only_given(config: DictConfig, overrides: Sequence[str]) -> None:
    """Reduce the methods of a config to their names and the arguments of the command line.

    The other arguments depend on the model, see `dpn.inference.methods`; `dpn.compress` has its own
    defaults.
    """
    given = {".".join(key_of(override).split(".")[:2]) for override in overrides}
    for part in ("router", "projector"):
        section: Any = config.get(part) or {}
        for key in [key for key in section if key != "name" and f"{part}.{key}" not in given]:
            OmegaConf.set_struct(section, False)
            del section[key]


def _given(node: DictConfig) -> list[str]:
    """Return the overrides as they were typed, without resolving references in them."""
    return OmegaConf.to_container(node.overrides.task, resolve=False)  # type: ignore[return-value]


def _ignored(config: DictConfig) -> list[str]:
    """Return the keys that the chosen router and projector accept but never read."""
    from dpn import projectors, routers

    keys = []
    for section, registry in (("router", routers), ("projector", projectors)):
        node = config.get(section) or {}
        if (name := node.get("name")) in registry.names():
            ignored = registry.resolve(name).ignores
            keys += [f"{section}.{key}" for key in ignored if key in node]
    return keys


#: Groups of which several choices can be combined, e.g. `logger=[csv,wandb]`.
SEVERAL = ("callbacks", "logger")


#: Choices of only one command: `model=hf` has no sizes to build a model from.
ONLY = {"model=hf": "verify"}


def _check_choices(config_name: str, overrides: Sequence[str]) -> None:
    """Refuse values of groups that Hydra can only answer with a traceback, e.g. `logger=null`.

    Raises:
        ConfigError: With a sentence for each group that is given no name.
    """
    problems = [
        f"`{override}` is a choice of dpn.{ONLY[override]} only; dpn.{config_name} takes others,"
        " see --help."
        for override in overrides
        if ONLY.get(override, config_name) != config_name
    ]
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = CONFIG_DIR / override.key_or_group
        if override.is_delete() or override.is_sweep_override() or not group.is_dir():
            continue
        value = override.value()
        chosen = value if isinstance(value, list) and group.name in SEVERAL else [value]
        if not all(isinstance(name, str) for name in chosen):
            names = ", ".join(f"`{path.stem}`" for path in sorted(group.glob("*.yaml")))
            problems.append(
                f"`{override.input_line}` is not a choice; choose one of {names}, or leave it out."
            )
    if problems:
        raise ConfigError(problems)


@contextmanager
def _hydra(config_name: str, overrides: Sequence[str]) -> Iterator[ConfigLoader]:
    """Initialize Hydra with `CONFIG_DIR`, also inside a program that Hydra has already started."""
    _check_choices(config_name, overrides)
    state = GlobalHydra.instance()
    running, state.hydra = state.hydra, None
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            yield state.config_loader()
    finally:
        state.hydra = running
