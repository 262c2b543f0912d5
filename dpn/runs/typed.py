"""Settings as they are written to files: resolved, but without text from environment variables.

`logger.wandb.project=${oc.env:SECRET}` stays as it was typed in every file of a run, since its
value may be a password. Numbers, booleans and null from the environment are written as values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc


def as_typed(config: DictConfig | ListConfig) -> Any:
    """Plain values of a config, resolved but for text from environment variables."""
    with _watched() as used:
        return _plain(config, OmegaConf.to_container(config, resolve=False), used)


def _plain(node: Any, raw: Any, used: list[str]) -> Any:
    if isinstance(raw, dict):
        return {key: _value(node, key, value, used) for key, value in raw.items()}
    return [_value(node, place, value, used) for place, value in enumerate(raw)]


def _value(node: Any, key: Any, raw: Any, used: list[str]) -> Any:
    if isinstance(raw, dict | list):
        return _plain(node[key], raw, used)
    if not OmegaConf.is_interpolation(node, key):
        return raw
    used.clear()
    value = node[key]
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    return raw if used and isinstance(value, str | dict | list) else value


@contextmanager
def _watched() -> Iterator[list[str]]:
    """A list to which the name of each environment variable is added when a config reads it."""
    used: list[str] = []

    def env(name: str, *default: Any) -> Any:
        used.append(name)
        return oc.env(name, *default)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield used
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
