"""Take the sizes of a model from the folder that `init.model` names."""

import inspect
from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpn import checkpoints, inference, routers, vision
from dpn.checkpoints.settings import Settings
from dpn.common import hub
from dpn.config import build
from dpn.model import meta_model
from dpn.runs.path import key_of


def adopt(config: DictConfig, overrides: Sequence[str]) -> None:
    """Replace the sizes of a composed config by those of the folder of `init.model`, in place.

    Text model, vision tower and processor become those of the folder, except for what the command
    line sets, e.g. `model.vision.image_size=448`. A folder of this package changes nothing if it
    holds the composed model. Published weights that `init=pretrained` chose are not loaded over
    those of the folder.

    A folder that cannot be read changes nothing; `dpn.config.preflight` says why.

    Args:
        config: Composed config of a training run.
        overrides: Overrides of the command line.
    """
    init: Any = config.get("init")
    if not init or _is_published(init, "model") or not isinstance(init.model, str):
        return
    try:
        folder = inference.model_folder(init.model, weights=False)
        if not checkpoints.holds_model(folder):
            return
        settings = checkpoints.model_settings(folder)
        own = checkpoints.is_own(folder)
    except (checkpoints.FolderError, OSError):
        return
    given = {key_of(override) for override in overrides if not override.startswith("~")}
    _drop_published(config, given, language_only=settings is None)
    if settings is not None and not (own and _is_same_model(config, settings)):
        _replace_sizes(config, settings, given)


def problems(config: DictConfig) -> list[str]:
    """Return why a run cannot start from the folder of `init.model`; an empty list if it can.

    Names and shapes of the weights are compared with the model that the config describes; a model
    of the Hub is downloaded for it.
    """
    name = config.init.model
    if name is None:
        return []
    try:
        folder = inference.model_folder(hub.find(name))
        settings = checkpoints.model_settings(folder) if checkpoints.holds_model(folder) else None
        if settings is not None:
            checkpoints.check_processor(folder, settings)
        model = meta_model(build.model_config(config))
        missing = checkpoints.check_weights(folder, model, build.initial_parts(config, model))
    except (checkpoints.FolderError, OSError) as error:
        return [f"`init.model={name}` cannot be used: {error}"]
    given = build.parts_of_init(model.vision)
    others = {part for key, parts in given.items() if config.init[key] for part in parts or ()}
    if lacking := sorted(p for p in missing.keys() - others if p.startswith("vision")):
        key = next(key for key, parts in given.items() if parts and lacking[0] in parts)
        return [
            f"`init.model={name}` holds no weights of {', '.join(lacking)}; give those that it was"
            f" trained from: init.{key}=FOLDER_OR_HUB_ID."
        ]
    return []


def _drop_published(config: DictConfig, given: set[str], language_only: bool) -> None:
    """Set the keys of `init` to null that `init=pretrained` chose."""
    for part in ("language", "projector", *(() if language_only else ("vision", "slow_vision"))):
        if _is_published(config.init, part) and f"init.{part}" not in given:
            config.init[part] = None


def _is_published(init: DictConfig, part: str) -> bool:
    """Whether a key of `init` refers to the published weights of the composed model."""
    raw: Any = OmegaConf.to_container(init, resolve=False)
    return str(raw.get(part)).startswith("${model.weights.")


def _replace_sizes(config: DictConfig, settings: Settings, given: set[str]) -> None:
    kept = {key: OmegaConf.select(config, key) for key in given if key.startswith("model.")}
    processor = {k: v for k, v in settings.processor.items() if k not in _TOWERS}
    processor["router_token"] |= _reads_router_token(config.get("router"))
    sections = {"text": settings.text, "vision": settings.vision, "processor": processor}
    for name, section in sections.items():
        config.model[name] = section
    for key, value in kept.items():
        OmegaConf.update(config, key, value, force_add=True)


#: Arguments of a processor that follow from the vision tower.
_TOWERS = ("image_size", "patch_size")


def _reads_router_token(router: Any) -> bool:
    """Whether a router, or a member of a chain, reads the `<ROUTER>` token."""
    if not router or router.get("name") not in routers.names():
        return False
    token = inspect.signature(routers.resolve(router["name"])).parameters.get("token")
    reads = token is not None and router.get("token", token.default) == "router"
    return reads or any(map(_reads_router_token, router.get("routers") or ()))


def _is_same_model(config: DictConfig, settings: Settings) -> bool:
    """Whether a composed config describes the model of a folder; True if that is unknown."""
    try:
        text, tower = (
            OmegaConf.to_container(config.model[key], resolve=True) for key in ("text", "vision")
        )
        return _text(text) == _text(settings.text) and _tower(tower) == _tower(settings.vision)
    except (OmegaConfBaseException, StrictDataclassError, LookupError, TypeError, ValueError):
        return True  # pre-flight names the setting


def _text(section: Any) -> dict[str, Any]:
    """Return what a text model computes, whatever its vocabulary and its initial weights."""
    values = checkpoints.text_arguments(section)
    return {k: v for k, v in values.items() if k not in ("vocab_size", "initializer_range")}


def _tower(section: Any) -> dict[str, Any]:
    """Return the arguments of a vision tower; its image size may change, see `dpn.vision`."""
    parameters = inspect.signature(vision.resolve(section["name"])).parameters
    values = {name: p.default for name, p in parameters.items()} | section
    values = {k: v for k, v in values.items() if k not in ("image_size", "init_std")}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
