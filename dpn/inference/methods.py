"""Another router or projector for a loaded model, without training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpn import checkpoints, projectors, routers
from dpn.common.errors import SettingError
from dpn.common.method_files import Kind, method_defaults
from dpn.common.text import one_line
from dpn.model import DPNConfig, DPNForConditionalGeneration, meta_model
from dpn.model.assemble import build_router

#: Name of a method, or its config section: `name` and arguments.
Method = str | Mapping[str, Any]
_REGISTRIES: dict[Kind, Any] = {"router": routers, "projector": projectors}
_STAGES: dict[Kind, str] = {
    "router": "stage=gates or stage=finetune",
    "projector": "stage=finetune",
}


def replace_methods(
    model: DPNForConditionalGeneration,
    source: Path | str,
    router: Method | None = None,
    projector: Method | None = None,
    keep: float | None = None,
) -> None:
    """Replace the router or projector of a model in place, as `stage=apply` does.

    Arguments that are not given are those of the method's YAML file. A method that the model has
    already keeps the model's own arguments.

    Args:
        model: Model whose weights are loaded.
        source: Folder of the model, for messages.
        router: Router; None for the model's own.
        projector: Projector; None for the model's own.
        keep: Share of visual MACs that the router spends, the named one or else the model's own.
            With a projector and without a router that takes a share, the share of the tower's
            tokens that the projector keeps.

    Raises:
        SettingError: If a method is unknown or does not fit the model, has weights that the model
            lacks, or needs data to meet `keep`.
    """
    named: dict[Kind, Method | None] = {"router": router, "projector": projector}
    given: dict[Kind, dict[str, Any]] = {
        part: {"name": value} if isinstance(value, str) else dict(value)
        for part, value in named.items()
        if value is not None
    }
    own: dict[Kind, dict[str, Any]] = {
        "router": model.config.router_config or {"name": "none"},
        "projector": model.config.projector_config or {"name": "mlp"},
    }
    if keep is not None:
        part = _keeping(source, given, own, keep)
        given.setdefault(part, {"name": own[part]["name"]})["keep"] = keep
    sections = {part: _section(part, own[part], asked) for part, asked in given.items()}
    sections = {part: section for part, section in sections.items() if section != own[part]}
    if "projector" in sections:
        sections.setdefault("router", own["router"])  # its sizes depend on the projector
    for part in sorted(sections):  # the projector first
        try:
            with torch.random.fork_rng(devices=[]):
                _replace(model, source, part, sections[part])
        except SettingError:
            raise
        except (TypeError, ValueError) as error:
            raise SettingError(
                f"`{part}={sections[part]['name']}` cannot be used with {source}:"
                f" {one_line(str(error))}"
            ) from error


def check_methods(
    folder: Path,
    source: Path | str,
    router: Method | None = None,
    projector: Method | None = None,
    keep: float | None = None,
) -> None:
    """Check that `replace_methods` works for the model of a folder, without reading its weights.

    Args:
        folder: Local folder of the model.
        source: Name of the folder, for messages.
        router: Router; None for the model's own.
        projector: Projector; None for the model's own.
        keep: Share of visual work.

    Raises:
        FolderError: If the folder holds no model that can be used.
        SettingError: As `replace_methods`.
    """
    settings = checkpoints.model_settings(folder)
    if settings is None:  # the sizes are known when its weights are read
        return
    config = DPNConfig(
        text_config=settings.text,
        vision_config=settings.vision,
        projector_config=settings.projector,
        router_config=settings.router,
    )
    replace_methods(meta_model(config), source, router, projector, keep)


def _keeping(
    source: Path | str,
    given: Mapping[Kind, Mapping[str, Any]],
    own: Mapping[Kind, Mapping[str, Any]],
    keep: float,
) -> Kind:
    """Return the part that a `keep` is for."""
    parts: list[Kind] = [part for part in _REGISTRIES if part in given] or ["router"]
    names = {part: (given.get(part) or own[part])["name"] for part in parts}
    for part, name in names.items():
        if _REGISTRIES[part].resolve(name).meets_keep == "never":
            continue
        if "keep" in given.get(part, {}):
            raise SettingError(f"`keep` and `{part}.keep` are both given; give one of them.")
        return part
    methods = " and ".join(f"{part}={name}" for part, name in names.items())
    raise SettingError(
        f"`keep={keep}` cannot be met with {methods}{'' if given else f' of {source}'}, which"
        " has no share to set; name a method that has one, e.g. router=fastv."
    )


def _section(part: Kind, own: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole section of a method that is given by its name and some arguments."""
    name = asked["name"]
    _REGISTRIES[part].resolve(name)
    defaults, shared = method_defaults(part, name)
    if name == own["name"]:
        section = {**own, **asked}
    else:
        section = {**defaults, **{key: own[key] for key in shared & own.keys()}, **asked}
    return routers.inline_files(section) if part == "router" else section


def _refuse_calibration(source: Path | str, part: Kind, section: Mapping[str, Any]) -> None:
    """Refuse a share that is met by a price that only training data can give."""
    name, keep = section["name"], section.get("keep")
    if _REGISTRIES[part].resolve(name).calibrated and keep is not None:
        raise SettingError(
            f"`{part}={name}` meets keep={keep} by a price that is found on training data, which"
            f" this command does not read; evaluate it with python -m dpn.train stage=apply"
            f" {part}={name} {part}.keep={keep} init.model={source}."
        )


def _replace(
    model: DPNForConditionalGeneration, source: Path | str, part: Kind, section: dict[str, Any]
) -> None:
    """Build a part for the sizes of the model, and give it the weights of the old one."""
    old: Any = getattr(model, part)
    own = getattr(model.config, f"{part}_config") or {}
    new: Any
    if part == "router":
        model.config.router_config = section
        new = build_router(model.config, model.vision, model.projector)
    else:
        new = projectors.build(
            **section, input_size=old.input_size, output_size=old.output_size, grid=old.grid
        )
    other = section["name"] != own.get("name") and (new.own_weights or old.own_weights)
    _take_weights(new, old, other, source, part, section["name"])
    _refuse_calibration(source, part, section)
    if problems := new.check():
        raise SettingError(f"{source}: {' '.join(problems)}")
    if part == "projector":
        new.attach(model.vision)
        model.config.projector_config = section
        new.to(next(old.parameters(), model.lm_head.weight).dtype)
    setattr(model, part, new.train(old.training))


def _take_weights(
    new: nn.Module, old: nn.Module, other: bool, source: Path | str, part: Kind, name: str
) -> None:
    """Give a part the weights of the one that it replaces.

    Args:
        new: The part.
        old: The part that it replaces.
        other: Whether weights of the same names have another meaning.
        source: Folder of the model.
        part: Kind of part.
        name: Name of the method.

    Raises:
        SettingError: If it has weights that the old part lacks.
    """
    weights = dict(old.named_parameters())
    shapes = {key: weight.shape for key, weight in new.named_parameters()}
    fits = all(key in weights and weights[key].shape == shapes[key] for key in shapes)
    if shapes and (other or not fits):
        raise SettingError(
            f"`{part}={name}` has weights of its own, which {source} does not contain; train them"
            f" with {_STAGES[part]} ({part}={name} init.model={source}), and use the folder of that"
            " run."
        )
    for key in shapes:
        owner, _, leaf = key.rpartition(".")
        setattr(new.get_submodule(owner), leaf, weights[key])
