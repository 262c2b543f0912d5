"""Which projectors a stock model can be compressed with."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from dpn import projectors
from dpn.common.errors import SettingError
from dpn.common.schema import check_arguments
from dpn.compressed._projection import Projection
from dpn.compressed._tower import AttentionReader, StockTower
from dpn.families import Family, TowerAttention
from dpn.projectors import Projector
from dpn.vision import Needs


def projection_for(
    section: Mapping[str, Any], inner: Any, family: Family, width: int
) -> Projection:
    """Build a projector for the visual tokens of a model.

    Args:
        section: Name and settings of the projector.
        inner: Inner model.
        family: Family of the model.
        width: Width of the text model.

    Raises:
        SettingError: If the projector is unknown or not possible, or a setting of it.
    """
    settings = {key: value for key, value in section.items() if key != "name"}
    if not isinstance(name := section.get("name"), str):
        raise SettingError(
            f"projector={dict(section)} must be the name of a projector, or a mapping of its"
            " settings with a `name`."
        )
    kind = projectors.resolve(name)
    if reason := _refusal(name, kind):
        raise SettingError(f"{reason}; there are {', '.join(usable())}.")
    if "depth" in settings:
        raise SettingError(
            "projector.depth is not possible with dpn.compress, which applies no linear layers of"
            " its own; leave it out."
        )
    if kind.calibrated and settings.get("keep") is not None:
        raise SettingError(
            f"projector.keep of {name} is met by a threshold that is found on training data, which"
            " dpn.compress does not have; set the threshold itself."
        )
    grid = max(family.reference(inner.config), key=lambda block: block.rows).grid
    sizes = {"input_size": width, "output_size": width, "grid": grid}
    if problems := check_arguments("projector", kind, {**settings, **sizes}):
        raise SettingError(" ".join(problems))
    projector: Projector = kind(**settings, **sizes, depth=0).eval()
    if problems := projector.check():
        raise SettingError(" ".join(problems))
    needs, reader = projector.needs, None
    tower = StockTower(1)
    if needs.attention:
        place = _attention(name, needs, inner, family)
        tower, reader = StockTower(place.heads), AttentionReader(place, needs.one_softmax)
    projector.attach(tower)
    return Projection(projector, reader)


def usable(without_attention: bool = False) -> list[str]:
    """Return the projectors that stock models can be compressed with.

    Args:
        without_attention: Whether those that need the vision tower's attention are left out.
    """
    kinds = {name: projectors.resolve(name) for name in projectors.names()}
    return [
        name
        for name, kind in kinds.items()
        if not _refusal(name, kind) and not (without_attention and kind.needs.attention)
    ]


def _refusal(name: str, kind: type[Projector]) -> str | None:
    """Return why no stock model can be compressed with a projector; None if some can."""
    if kind.own_weights:
        return (
            f"projector={name} has weights that must be trained with the model, so dpn.compress"
            " cannot add it"
        )
    if kind.resize_images is not Projector.resize_images:
        return (
            f"projector={name} resizes images before the vision tower, which the processor of the"
            " model can do (give it smaller images); dpn.compress takes tokens that are computed"
        )
    if "depth" not in signature(kind).parameters:
        return (
            f"projector={name} has no setting depth, so its linear layers cannot be left out, and"
            " the model has its own"
        )
    return None


def _attention(name: str, needs: Needs, inner: Any, family: Family) -> TowerAttention:
    """Return the attention module of the tower that a projector reads.

    Raises:
        SettingError: If there is none that can be read.
    """
    place = family.attention(inner, int(needs.attention == "next"))
    if place is not None:
        return place
    tower = getattr(inner.config.vision_config, "model_type", "unknown")
    raise SettingError(
        f"projector={name} reads the attention of the vision tower, which dpn.compress cannot do in"
        f" this {inner.config.model_type} model with a tower of type {tower} (its CLS token must"
        " exist and be dropped, or not exist); without attention there are"
        f" {', '.join(usable(without_attention=True))}."
    )
