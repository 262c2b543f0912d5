"""Shallow copies of Hugging Face models, which share every parameter with the original."""

import copy
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from dpn.common.errors import SettingError
from dpn.compressed._deepstack import DeepStack
from dpn.compressed._inputs import bound
from dpn.compressed._passes import Compression
from dpn.decoder.attention import IMPLEMENTATION
from dpn.decoder.layer import DecoderLayer


def compressed_copy(model: Any, handle: Compression) -> Any:
    """Return a copy of a model whose text model runs in the layer loop.

    Args:
        model: A model like `LlavaForConditionalGeneration`.
        handle: What the copy does; it becomes its attribute `dpn`.
    """
    fast, inner = _twin(model), _twin(model.model)
    fast.generation_config = copy.deepcopy(model.generation_config)
    fast.config = _config(model.config)
    fast.model, fast.dpn = inner, handle
    if (reader := handle.reader) is not None:
        tower, _, path = reader.place.path.partition(".")
        setattr(inner, tower, copied := _twin_tree(getattr(inner, tower)))
        reader.watch(copied.get_submodule(path))
    fast.__class__ = _generating(type(fast))  # type: ignore[arg-type]
    inner.__class__ = _watching(type(inner))  # type: ignore[arg-type]
    inner.dpn = handle
    text = _twin(getattr(inner, handle.family.text))
    inner.config, text.config = fast.config, fast.config.get_text_config()
    text.config._attn_implementation = IMPLEMENTATION
    text.layers = nn.ModuleList(_layer(layer, text.config) for layer in text.layers)
    text.__class__ = _looping(type(text))  # type: ignore[arg-type]
    text.dpn = handle
    setattr(inner, handle.family.text, text)
    return fast


def _config(config: Any) -> Any:
    """Copy a config, but not those of the parts that the copy shares with the original."""
    text = config.get_text_config()
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return copy.deepcopy(config, {id(part): part for part in parts if part is not text})


def _twin(module: Any) -> Any:
    """Copy a module, but not its parameters and children: adding hooks to the copy or replacing its
    children does not change the original.

    Raises:
        SettingError: If its forward was replaced: that function would run the original.
    """
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if name.startswith("_") and isinstance(value, dict | set):
            vars(twin)[name] = value.copy()
    hook = vars(twin).get("_hf_hook")
    if type(hook).__name__ == "AlignDevicesHook" and not hook.offload:  # only moves inputs
        for name in ("_hf_hook", "_old_forward", "forward", "to", "cuda"):
            vars(twin).pop(name, None)
    if "forward" in vars(twin) or module._compiled_call_impl is not None:
        raise SettingError(
            f"The forward of {type(module).__name__} was replaced, e.g. by an offloading hook of"
            " accelerate, mixed precision or torch.compile; compress the model before, or load it"
            " again."
        )
    return twin


def _twin_tree(module: Any) -> Any:
    """Copy a module and all modules in it, but not their parameters."""
    twin = _twin(module)
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _twin_tree(child)
    return twin


def _layer(layer: Any, config: Any) -> DecoderLayer:
    """Return a decoder layer with packed attention."""
    layer = _twin(layer)
    for name, child in list(layer.named_children()):
        setattr(layer, name, _twin(child))
    layer.self_attn.config = config  # names the attention function; the original shares its own
    return DecoderLayer(layer, config.model_type)


@cache
def _generating(stock: Any) -> Any:
    """Return a subclass of a whole model that tells its handle about labels and generation."""

    @wraps(stock.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = bound(stock.forward, self, *args, **kwargs)
        with self.dpn.inputs.of_model(given.get("labels")):
            return stock.forward(self, *args, **kwargs)

    prepare = stock.prepare_inputs_for_generation

    @wraps(prepare)
    def prepare_inputs_for_generation(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = bound(prepare, self, *args, **kwargs)
        columns = given["input_ids"].shape[1]
        step = given.get("use_cache"), given.get("is_first_iteration")
        self.dpn.inputs.note_step(columns, *step)
        return prepare(self, *args, **kwargs)

    methods = {"forward": forward, prepare.__name__: prepare_inputs_for_generation}
    return _subclass(stock, methods)


@cache
def _watching(stock: Any) -> Any:
    """Return a subclass of an inner model that tells its handle about ids and images."""
    methods: dict[str, Any] = {}

    @wraps(stock.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = bound(stock.forward, self, *args, **kwargs)
        with self.dpn.inputs.of_inner_model(self, given):
            return stock.forward(self, *args, **kwargs)

    methods["forward"] = forward
    for kind in ("image", "video"):
        if (encode := getattr(stock, f"get_{kind}_features", None)) is not None:
            methods[encode.__name__] = _noting(kind, encode)
    return _subclass(stock, methods)


def _noting(kind: str, encode: Any) -> Any:
    @wraps(encode)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.dpn.inputs.encode(kind, encode, self, args, kwargs)

    return noting


@cache
def _looping(stock: Any) -> Any:
    """Return a subclass of a text model that runs in the layer loop."""

    @wraps(stock.forward)
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        visual_pos_masks: Tensor | None = None,
        deepstack_visual_embeds: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name, getattr(self.config, name, False)):
                raise SettingError(
                    f"{name}=True is not supported by a compressed model, whose layers hold"
                    " different numbers of rows; use dpn.restore(model) for it."
                )
        if self.config._attn_implementation != IMPLEMENTATION:  # by set_attn_implementation
            self.config._attn_implementation = IMPLEMENTATION
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        planes = None
        if deepstack_visual_embeds is not None and visual_pos_masks is not None:
            planes = DeepStack(deepstack_visual_embeds, visual_pos_masks.cpu().numpy())
        hidden, cache = self.dpn.run(
            self,
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values,
            self.config.use_cache if use_cache is None else use_cache,
            planes,
        )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=cache)

    return _subclass(stock, {"forward": torch.compiler.disable(forward)})


def _subclass(stock: Any, methods: dict[str, Any]) -> type:
    names = {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
    return type(stock.__name__, (stock,), {**names, **methods})
