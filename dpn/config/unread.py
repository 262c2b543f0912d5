"""Find overrides that change nothing, because nothing reads their key in this composition."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from dpn.runs.path import key_of
from dpn.runs.request import Node, Request
from dpn.training.schedule import IGNORED

#: Keys that only other settings read, by a reference such as `${stage.lr}`; with the setting to
#: change instead. Defaults that a model has for routers, such as `model.min_rows`, are left out:
#: comparisons set them for all methods, whether a method reads them or not.
_REFERRED_TO = {
    "stage.lr": "optim.lr",
    "recipe.keep": "router.keep",
    "recipe.freeze": "stage.freeze",
    "recipe.pretrain_image_size": "model.vision.image_size",
    "recipe.batch_size": "data.batch_size",
    "recipe.group": "data.group",
    "recipe.max_length": "data.max_length",
    "recipe.train_images": "data.train_images",
    "recipe.val_images": "data.val_images",
    "recipe.val_rows": "data.val_rows",
    "model.weights.language": "init.language",
    "model.weights.vision": "init.vision",
    "model.weights.slow_vision": "init.slow_vision",
    "model.weights.projector": "init.projector",
    "model.weights.llava": "init.model",
    "paths.weights_root": "init.language",
}
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?\s*([\w.]+)")


def unread(request: Request, config: Node) -> list[str]:
    """Return a sentence for each override of a request that changes nothing.

    Args:
        request: Request with the references in its config.
        config: The same config with all references resolved.
    """
    node = OmegaConf.to_container(request.config, resolve=False)
    referred = {name for text in _texts(node) for name in _REFERENCE.findall(text)}
    problems = []
    for override in request.overrides:
        key = key_of(override)
        if key in _REFERRED_TO and not any(_covers(name, key) for name in referred):
            problems.append(
                f"`{override}` changes nothing: no setting of this composition refers to {key};"
                f" set {_REFERRED_TO[key]}, or remove it."
            )
    given = {key_of(override): override for override in request.overrides}
    schedule = str(_section(config, "optim").get("schedule", "cosine"))
    problems += [
        f"`{given[f'optim.{name}']}` changes nothing: optim.schedule={schedule} does not use it;"
        " remove it, or choose another schedule."
        for name in IGNORED.get(schedule, ())
        if f"optim.{name}" in given
    ]
    tokenizer = _section(config, "model").get("tokenizer")
    if "model.vocab_size" in given and tokenizer is not None:
        problems.append(
            f"`{given['model.vocab_size']}` changes nothing: the tokenizer"
            f" model.tokenizer={tokenizer} has its own size; remove it, or set"
            " model.tokenizer=null."
        )
    return problems


def _section(config: Node, key: str) -> Node:
    """Return a section; an empty one if it is not a mapping, which has its own sentence."""
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def _covers(name: str, key: str) -> bool:
    """Whether a reference to `name` reads `key`: the same key, or a section with it."""
    return key == name or key.startswith(f"{name}.")


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
