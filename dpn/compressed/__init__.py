"""`compress`: methods that reduce visual tokens, on a stock Hugging Face VLM.

The compressed model is a shallow copy: an instance of the same class with the parameters and the
vision tower of the original, whose text model runs in the layer loop of `dpn.decoder`.

Imports `common`, `tokens`, `cost`, `vision`, `projectors`, `routers`, `decoder`, `families` and
`model`.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from dpn.tokens import Block

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
    as it was. Use it as before, with the same processor: `forward`, `generate`, training, and
    `save_pretrained`, which writes a stock checkpoint. Each sample is one sequence with its images
    at the start of a cache; text can follow the cache.

    Training, `.to()` and `.half()` change the weights of both. The copy has configs, hooks and
    modules of its own in the text model; it shares the vision tower, with its attention
    implementation. Adapters that the model has already act in the copy, too; those added to the
    text model later act in the model that they were added to. In training, routers read the prompt
    only up to the first label that is not -100.

    Args:
        model: A model of one of the families in `dpn.families`, on one device.
        router: Name of a router without weights of its own, or its config section with a `name`.
        projector: Name of a projector without weights of its own, or its config section with a
            `name`. It reduces the tokens that the model's own projector computed. Methods that
            choose tokens (`divprune`, `random`) do so among all tiles or frames of an image or
            video; other methods reduce each of them by itself. Rows stand in the order of their
            first tokens. If tokens are chosen by the vision tower's attention, newline tokens stay
            only with a whole image.
        keep: For a router, the target share of visual MACs for a typical image, see
            `Family.reference`; for a projector, the share of an image's tokens that enter the
            decoder. What each sample reached is in `model.dpn.trace`.
        attention: Attention backend of the prefill, see `dpn.decoder.attention`; the text model
            keeps it whatever `set_attn_implementation` is called with.
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
    blocks, base = family.reference(model.config), None
    projection = None
    if before is not None:
        projection = projection_for(before, model.model, family, text.config.hidden_size)
        base = sum(block.rows for block in blocks)
        blocks = tuple(Block(projection.projector.grid_after(block.grid)) for block in blocks)
    built = _router(section, TextShape.from_config(text.config, base), blocks)
    positions = built.positions
    if positions != "keep" and "mrope_section" in (text.config.rope_parameters or {}):
        raise SettingError(
            f"positions={positions!r} is not possible for {type(model).__name__}, whose rows have"
            " positions of three axes; leave it out, and rows keep theirs."
        )
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
    section: Any = dict(router) if isinstance(router, Mapping) else {"name": router}
    settings = dict(settings) if keep is None else {**settings, "keep": keep}
    if projector is None:
        return section | settings, None
    before: Any = dict(projector) if isinstance(projector, Mapping) else {"name": projector}
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
        adapter: Any = getattr(model, "active_peft_config", None)
        if getattr(adapter, "is_prompt_learning", False):
            raise SettingError(
                f"The adapter of type {adapter.peft_type.value} acts in the wrapper of peft and not"
                " in the model's layers, so dpn.compress would leave it out; use one like LoRA."
            )
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


def _router(section: Mapping[str, Any], text: TextShape, blocks: Sequence[Block]) -> Router:
    """Build a router for a text model and a typical image.

    Raises:
        SettingError: If it is unknown, has weights, or its settings are not possible.
    """
    for name in _names(section):
        if routers.resolve(name).own_weights:
            free = [name for name in routers.names() if not routers.resolve(name).own_weights]
            raise SettingError(
                f"router={name} has weights that must be trained with the model, so dpn.compress"
                f" cannot add it; without training there are {', '.join(free)}."
            )
    largest = max(blocks, key=lambda block: block.rows).grid
    router: Router = routers.build(**section, text=text, grid=largest, blocks=blocks)
    _number(router, section)
    if problems := router.check():
        raise SettingError(" ".join(problems))
    return router


def _names(section: Mapping[str, Any]) -> Iterator[str]:
    """Yield the name of a router and, for a chain, those of its members."""
    if not isinstance(section, Mapping) or not isinstance(name := section.get("name"), str):
        raise SettingError(
            f"router={section!r} must be the name of a router, or a mapping of its settings with a"
            " `name`."
        )
    yield name
    for member in section.get("routers") or ():
        yield from _names(member)


def _number(router: Any, section: Mapping[str, Any]) -> None:
    """Let rows keep their positions, unless the settings of a router or member say otherwise."""
    router.positions = section.get("positions", "keep")
    for member, settings in zip(
        getattr(router, "members", ()), section.get("routers", ()), strict=False
    ):
        _number(member, settings)
        router.positions = router.members[0].positions
