"""Folder names of runs and sweeps; the same command always gives the same name."""

import glob
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpn.common.errors import FileError
from dpn.runs.request import ConfigError, Request, unresolved
from dpn.runs.saved import read_settings

SLUG_BYTES = 100
SWEEP = "DPN_SWEEP"
"""Environment variable with the name of the multirun, for its jobs in whichever process."""
# Settings that change where or how fast a run computes, but not what.
_NOT_IDENTITY = (
    *("paths", "logger", "hydra", "experiment", "data_root", "against", "overlays"),
    *("model.attention", "model.compile_layers", "timeout_s"),
)
_NOT_IDENTITY_LEAVES = ("num_workers",)


def config_hash(config: DictConfig) -> str:
    """8 hex digits of the resolved config without paths, loggers, launcher and workers.

    A class counts by its name, not by the module it lives in.

    Raises:
        ConfigError: If the config cannot be resolved.
    """
    # Values built from paths get the name of the path, not the place it points to.
    paths = {key: f"<{key}>" for key in config.get("paths", {})}
    text = json.dumps(_settings(_resolved(config, paths)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _resolved(config: DictConfig, paths: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a config with other paths and without settings that compute nothing."""
    bare = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    assert isinstance(bare, DictConfig)
    bare.paths = paths
    for key in set(_NOT_IDENTITY) - {"paths"}:
        _remove(bare, key)
    try:
        resolved = OmegaConf.to_container(bare, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([unresolved(error)]) from None
    assert isinstance(resolved, dict)
    _remove_added(resolved)
    return resolved  # type: ignore[return-value]


def _remove(config: Any, key: str) -> None:
    """Remove a dotted key from a mapping, if it is there."""
    section, _, name = key.rpartition(".")
    (config.get(section) or {} if section else config).pop(name, None)


# Settings that a later version added, with the value at which nothing changed.
_ADDED = {"router.reference": False}
# Settings of data that a later version added; pixels of ordinary pictures are the same with any.
_ADDED_TO_DATA = ("image_max_pixels", "image_max_ratio", "image_background", "image_released")
# Default of `data.metric` of sources with another one than `normalised`.
_METRICS = {"mosaic": "digits"}


def _remove_added(config: Any) -> None:
    """Remove added settings that change nothing, so that the same run by an earlier version, whose
    config does not have them, is found.
    """

    if config.get("keep", 0) is None:  # of dpn.eval
        config.pop("keep")
    source = config.get("data")
    name = str(source.get("name")) if isinstance(source, dict) else ""
    for key, value in {**_ADDED, "data.metric": _METRICS.get(name, "normalised")}.items():
        section, _, leaf = key.rpartition(".")
        if isinstance(config.get(section), dict) and config[section].get(leaf) == value:
            config[section].pop(leaf)


def _settings(value: Any) -> Any:
    """The part of a config's plain values that identifies a run."""
    if isinstance(value, dict):
        kept = {k: _settings(v) for k, v in value.items() if k not in _NOT_IDENTITY_LEAVES}
        if "_target_" in kept:
            kept["_target_"] = str(kept["_target_"]).rpartition(".")[2]
        return kept
    return [_settings(item) for item in value] if isinstance(value, list) else value


def slug(overrides: Sequence[str], config: DictConfig) -> str:
    """Name of the run's folder: its overrides in `[A-Za-z0-9._-]` and its hash, at most 100 bytes.

    The order of overrides does not matter, and those that the hash ignores are left out, so the
    same run with another logger finds its folder again.
    """
    return _named(_kept(overrides), config_hash(config))


def sweep_name(request: Request) -> str:
    """Name of a multirun's folder: the overrides of its command and a hash, see `compose_jobs`."""
    kept = _kept(request.overrides)
    text = json.dumps([kept, config_hash(request.config), request.experiment])
    return _named(kept, hashlib.sha256(text.encode()).hexdigest()[:8])


def _kept(overrides: Sequence[str]) -> list[str]:
    """Overrides that change the hash; groups first."""
    every = sorted(overrides, key=lambda o: ("." in o.partition("=")[0], o))
    return [override for override in every if is_identity(key_of(override))]


def _named(overrides: Sequence[str], digits: str) -> str:
    safe = (re.sub(r"[^A-Za-z0-9._-]+", "-", o.lstrip("+")).strip("-.") for o in overrides)
    return f"{('_'.join(safe) or 'default')[: SLUG_BYTES - 1 - len(digits)]}-{digits}"


def sweep_path(config: DictConfig, name: str) -> Path:
    """Folder of a multirun, with its jobs and their summary."""
    return _folder(config, "output_root") / "multirun" / name


def key_of(override: str) -> str:
    """The dotted key or the group that an override sets."""
    return re.split(r"[=@]", override.lstrip("+~"))[0]


def is_identity(key: str) -> bool:
    """Whether a setting changes what a run computes."""
    parts = re.split(r"[./]", key)
    outside = {parts[0], key} & set(_NOT_IDENTITY)
    return not outside and parts[-1] not in _NOT_IDENTITY_LEAVES


def run_path(request: Request) -> Path:
    """Folder of a run: `paths.run_dir`, or the one that its overrides and its config name.

    The folder of the same run by an earlier version, whose name has another hash, is found too.
    """
    config = request.config
    if OmegaConf.select(config, "paths.run_dir") is not None:
        return _folder(config, "run_dir")
    parent = _folder(config, "output_root") / request.experiment
    path = parent / slug(request.overrides, config)
    return path if path.exists() else earlier_run(config, path) or path


def _folder(config: DictConfig, key: str) -> Path:
    """Folder that a key of section `paths` names; raises a ConfigError if it is not text."""
    try:
        value = OmegaConf.select(config, f"paths.{key}")
    except OmegaConfBaseException as error:
        raise ConfigError([unresolved(error)]) from None
    if not isinstance(value, str) or not value:
        raise ConfigError([f"`paths.{key}={value}` is not a path; give a folder."])
    return Path(value)


# Earlier versions hashed the modules of classes, and kept the values of `recipe` elsewhere.
_MOVED = (
    *("recipe", "loss.keep", "model.keep", "model.freeze", "model.pretrain_image_size"),
    *("model.batch_size", "model.group", "model.max_length"),
)


def earlier_run(config: DictConfig, path: Path) -> Path | None:
    """The folder of the same run by an earlier version, whose name has another hash."""
    alike = path.parent.glob(f"{glob.escape(path.name[:-8])}{'[0-9a-f]' * 8}")
    return next((folder for folder in sorted(alike) if holds_run(folder, config)), None)


def holds_run(folder: Path, config: DictConfig) -> bool:
    """Whether the `config.yaml` of a folder has the settings of a config, whatever its hash."""
    try:
        saved = OmegaConf.to_container(read_settings(folder), resolve=True)
    except (FileNotFoundError, FileError, OmegaConfBaseException):
        return False
    if not isinstance(saved, dict) or not isinstance(saved.get("paths"), dict):
        return False
    asked = _resolved(config, saved["paths"])
    _remove_added(saved)
    for key in _ADDED_TO_DATA:
        if key not in (saved.get("data") or {}):
            _remove(asked, f"data.{key}")
    for settings in (saved, asked):
        for key in {*_NOT_IDENTITY, *_MOVED}:
            _remove(settings, key)
    return _settings(saved) == _settings(asked)
