"""`compress`: methods that reduce visual tokens, on a stock Hugging Face VLM.

The compressed model is a shallow copy: an instance of the same class with the parameters and the
vision tower of the original, whose text model runs in the layer loop of `dpn.decoder`.

Imports `common`, `tokens`, `cost`, `vision`, `projectors`, `routers`, `decoder`, `families` and
`model`.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from dpn import routers
from dpn.common.errors import SettingError
from dpn.compressed._copies import compressed_copy
from dpn.compressed._methods import projection_for
from dpn.compressed._passes import Compression
from dpn.compressed._record import Record
from dpn.cost import TextShape
from dpn.decoder.backends import BackendName
from dpn.decoder.text_models import check_text_model
from dpn.families import Family, family_of
from dpn.routers import Router
from dpn.tokens import Grid, Positions

__all__ = ["Compression", "Record", "compress", "restore"]


def compress(
    model: Any,
    router: str | Mapping[str, Any] = "none",
    *,
    projector: str | Mapping[str, Any] | None = None,
    keep: float | None = None,
    attention: BackendName = "auto",
    **settings: Any,
) -> Any:
    """Return a copy of a Hugging Face VLM that reduces visual tokens in or before its text model.

    The copy is an instance of the same class and shares all weights with the original, which stays
    as it was. Use it as before, with the same processor: `forward`, `generate`, training. What
    `.to()`, `.half()` or training change, changes in both; add adapters and new embeddings before.
    Each sample is one sequence with its images at the start of a cache; text can follow the cache.

    Args:
        model: A model of one of the families in `dpn.families`, on one device.
        router: Name of a router without weights of its own, or its config section with a `name`.
        projector: Name of a projector without weights of its own, or its config section with a
            `name`. It reduces the tokens that the model's own projector computed. Methods that
            choose tokens (`divprune`, `random`) do so among all tiles or frames of an image or
            video; other methods reduce each of them by itself. Rows stand in the order of their
            first tokens. If tokens are chosen by the vision tower's attention, newline tokens stay
            only with a whole image.
        keep: For a router, the target share of visual MACs for a typical image of the family; for a
            projector, the share of an image's tokens that enter the decoder. What each sample
            reached is in `model.dpn.trace`.
        attention: Attention backend of the prefill, see `dpn.decoder.attention`.
        **settings: Further settings of the router or the projector, those of its YAML file. If
            both are chosen, `keep` and these stand in their sections. Rows keep the positions that
            the stock model gives them; the setting `positions="renumber"` of a router counts the
            remaining rows, for models with one rotary axis.

    Returns:
        The copy. Its attribute `dpn` is a `Compression`.

    Raises:
        SettingError: If the model or a setting is not supported.
    """
    model = _base(model)
    family = family_of(model.config)
    text = _text_model(model, family)
    check_text_model(text.config, given_positions=True)
    section, before = _sections(router, projector, keep, settings)
    positions: Positions = section.get("positions", "keep")
    if positions != "keep" and "mrope_section" in (text.config.rope_parameters or {}):
        raise SettingError(
            f"positions={positions!r} is not possible for {type(model).__name__}, whose rows have"
            " positions of three axes; leave it out, and rows keep theirs."
        )
    grid, base = family.reference(model.config), None
    projection = None
    if before is not None:
        projection = projection_for(before, model.model, family, text.config.hidden_size)
        grid, base = projection.projector.grid_after(grid), grid[0] * grid[1]
    built = _router(section, TextShape.from_config(text.config, base), grid)
    handle = Compression(model, family, projection, built, positions, attention)
    return compressed_copy(model, handle)


def restore(model: Any) -> Any:
    """Return the original of a compressed model.

    Raises:
        SettingError: If the model is not one that `compress` returned.
    """
    if not isinstance(handle := getattr(model, "dpn", None), Compression):
        raise SettingError("dpn.restore expects a model that dpn.compress returned.")
    return handle.original


def _sections(
    router: str | Mapping[str, Any],
    projector: str | Mapping[str, Any] | None,
    keep: float | None,
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the config sections of the router and the projector, see `compress`.

    Raises:
        SettingError: If it is not clear to which of them a setting belongs.
    """
    section: dict[str, Any] = {"name": router} if isinstance(router, str) else dict(router)
    settings = dict(settings) if keep is None else {**settings, "keep": keep}
    if projector is None:
        return section | settings, None
    before: dict[str, Any] = {"name": projector} if isinstance(projector, str) else dict(projector)
    if section == {"name": "none"}:
        return section, before | settings
    if settings:
        raise SettingError(
            f"It is not clear whether {', '.join(settings)} belong to the router or the projector;"
            f" write sections such as projector={{'name': {before.get('name')!r}, 'keep': 0.5}}."
        )
    return section, before


def _base(model: Any) -> Any:
    """Return the model itself, without a wrapper of peft.

    Raises:
        SettingError: If it is not a model, compressed already, or spread over several devices.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if isinstance(getattr(model, "dpn", None), Compression):
        raise SettingError(
            "The model is compressed already; compress the original, which dpn.restore(model)"
            " returns."
        )
    if not isinstance(model, PreTrainedModel):
        raise SettingError(
            "dpn.compress expects a Hugging Face model such as LlavaForConditionalGeneration, not"
            f" an object of type {type(model).__name__}; load the model with from_pretrained, or"
            " take it out of its wrapper (pipeline.model, wrapped.module, compiled._orig_mod)."
        )
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        raise SettingError(
            f"The model is spread over several devices ({', '.join(sorted(devices))}), which"
            " dpn.compress does not support; load it with device_map=0 or without one."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SettingError(
            "The model has weights that are offloaded or not loaded yet, which dpn.compress does"
            " not support; load the whole model on one device."
        )
    return model


def _text_model(model: Any, family: Family) -> Any:
    """Return the text model of a VLM.

    Raises:
        SettingError: If the model's class is not one of transformers with a language head.
    """
    name, kind = type(model).__name__, model.config.model_type
    if not any(c.__module__.startswith("transformers.models.") for c in type(model).__mro__):
        raise SettingError(
            f"{name} is not a part of transformers, although its type {kind!r} is; load a"
            " checkpoint in Hugging Face's format, without trust_remote_code."
        )
    text = getattr(getattr(model, "model", None), family.text, None)
    if text is None or model.get_output_embeddings() is None:
        raise SettingError(
            f"dpn.compress expects the model of type {kind!r} that generates text, not {name}; load"
            " it with AutoModelForImageTextToText."
        )
    return text


def _router(section: Mapping[str, Any], text: TextShape, grid: Grid) -> Router:
    """Build a router.

    Raises:
        SettingError: If it is unknown, has weights, or its settings are not possible.
    """
    kind = routers.resolve(section["name"])
    if kind.own_weights:
        free = [name for name in routers.names() if not routers.resolve(name).own_weights]
        raise SettingError(
            f"router={section['name']} has weights that must be trained with the model, so"
            f" dpn.compress cannot add it; without training there are {', '.join(free)}."
        )
    router: Router = routers.build(**section, text=text, grid=grid)
    if problems := router.check():
        raise SettingError(" ".join(problems))
    return router
