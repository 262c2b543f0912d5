"""Where a run lives: a folder that its settings name, the same for the same command."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpn.runs.request import ConfigError, Request

SLUG_BYTES = 100
SWEEP = "DPN_SWEEP"
"""Environment variable by which a multirun tells its jobs, whoever starts them, its name."""
# Settings that change where or how fast a run happens, never what it computes.
_NOT_IDENTITY = (
    *("paths", "logger", "hydra", "experiment", "data_root", "against", "overlays"),
    *("model.attention", "model.compile_layers"),
)
_NOT_IDENTITY_LEAVES = ("num_workers",)


def config_hash(config: DictConfig) -> str:
    """8 hex digits of the resolved config without paths, loggers, launcher and workers.

    A class counts by its name, not by the module it lives in.

    Raises:
        ConfigError: if the config can not be resolved.
    """
    bare = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    assert isinstance(bare, DictConfig)
    # Values that are built from paths keep the name of the path, not the place it points to.
    bare.paths = {key: f"<{key}>" for key in bare.get("paths", {})}
    for key in set(_NOT_IDENTITY) - {"paths"}:
        section, _, name = key.rpartition(".")
        (bare.get(section, {}) if section else bare).pop(name, None)
    try:
        resolved = OmegaConf.to_container(bare, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([" ".join(str(error).split())]) from None
    text = json.dumps(_identity(resolved), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _identity(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: _identity(v) for k, v in value.items() if k not in _NOT_IDENTITY_LEAVES}
        if "_target_" in kept:
            kept["_target_"] = str(kept["_target_"]).rpartition(".")[2]
        return kept
    return [_identity(item) for item in value] if isinstance(value, list) else value


def slug(overrides: Sequence[str], config: DictConfig) -> str:
    """Name of the run's folder: its overrides in `[A-Za-z0-9._-]` and its hash, at most 100 bytes.

    Overrides that the hash leaves out are left out here too, and their order does not matter, so
    the same run with another logger finds its folder again.
    """
    return _named(_kept(overrides), config_hash(config))


def sweep_name(request: Request) -> str:
    """Name of a multirun's folder, made in the same way of its command, see `compose_jobs`."""
    kept = _kept(request.overrides)
    text = json.dumps([kept, config_hash(request.config), request.experiment])
    return _named(kept, hashlib.sha256(text.encode()).hexdigest()[:8])


def _kept(overrides: Sequence[str]) -> list[str]:
    """Overrides of what the hash sees; groups first."""
    every = sorted(overrides, key=lambda o: ("." in o.partition("=")[0], o))
    return [override for override in every if is_identity(key_of(override))]


def _named(overrides: Sequence[str], digits: str) -> str:
    safe = (re.sub(r"[^A-Za-z0-9._-]+", "-", o.lstrip("+")).strip("-.") for o in overrides)
    return f"{('_'.join(safe) or 'default')[: SLUG_BYTES - 1 - len(digits)]}-{digits}"


def sweep_path(config: DictConfig, name: str) -> Path:
    """Where a multirun says what its jobs are and became."""
    return Path(config.paths.output_root) / "multirun" / name


def key_of(override: str) -> str:
    """What an override is about: a dotted key, or a group."""
    return re.split(r"[=@]", override.lstrip("+~"))[0]


def is_identity(key: str) -> bool:
    """Whether a setting changes what a run computes."""
    parts = re.split(r"[./]", key)
    outside = {parts[0], key} & set(_NOT_IDENTITY)
    return not outside and parts[-1] not in _NOT_IDENTITY_LEAVES


def run_path(request: Request) -> Path:
    """Where a run lives: `paths.run_dir`, or the folder that its overrides and config name."""
    paths, name = request.config.paths, slug(request.overrides, request.config)
    return Path(paths.run_dir or Path(paths.output_root) / request.experiment / name)
