"""Names in a user's own YAML files that this release still takes, and what they are called now."""

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

#: Keys that moved.
KEYS = {
    f"model.{key}": f"recipe.{key}"
    for key in ("keep", "freeze", "pretrain_image_size", "batch_size", "group", "max_length")
}
#: Modules of classes that a `_target_` may name.
MODULES = {
    f"dpn.{module}": f"dpn.training.{module}"
    for module in ("callbacks", "loggers", "optim", "resume", "strategies")
}


def update(config: DictConfig) -> None:
    """Rename what an earlier release called otherwise, in place, with a warning for each."""
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
