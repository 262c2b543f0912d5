"""Keys and class paths of earlier releases, which a user's YAML files may still use."""

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

#: New key of each key that moved.
KEYS = {
    f"model.{key}": f"recipe.{key}"
    for key in ("keep", "freeze", "pretrain_image_size", "batch_size", "group", "max_length")
}
#: New module of each module that a `_target_` may name.
MODULES = {
    f"dpn.{module}": f"dpn.training.{module}"
    for module in ("callbacks", "loggers", "optim", "resume", "strategies")
}


def update(config: DictConfig) -> None:
    """Replace names of earlier releases in a config, in place, with a warning for each."""
    for old, new in KEYS.items():
        section, _, key = old.partition(".")
        if key in (config.get(section) or {}):
            log.warning("`%s` is now called `%s`; please rename it in your YAML file.", old, new)
            OmegaConf.update(config, new, config[section].pop(key), force_add=True)
    for section in ("optim", "trainer", "logger", "callbacks"):
        _update_targets(config.get(section))


def _update_targets(node: Any) -> None:
    if not isinstance(node, DictConfig):
        return
    module, _, name = str(node.get("_target_")).rpartition(".")
    if module in MODULES:
        node["_target_"] = f"{MODULES[module]}.{name}"
        log.warning("`%s.%s` is now `%s`; please rename it.", module, name, node["_target_"])
    for key in node:
        if not OmegaConf.is_interpolation(node, str(key)):
            _update_targets(node[key])
