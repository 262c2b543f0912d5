"""What Hugging Face's training tools expect of a model: Trainer, peft and TRL's SFTTrainer."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import logging

from dpn.common.errors import SettingError
from dpn.data.batch import IGNORE

log = logging.get_logger(__name__)


def uncompiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method that `torch.compile` shall call as it is: it works on lists and arrays of
    the host, whose lengths differ in every batch.
    """
    plain = torch.compiler.disable(forward)

    @wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            _say_uncompiled()
        return plain(self, *args, **kwargs)

    return call


@torch.compiler.disable
def _say_uncompiled() -> None:
    log.warning_once(
        "torch.compile does not compile the loop over the decoder layers; compile the layers with"
        " dpn.decoder.layer.compile_layers(model.language)."
    )


class TrainingToolsMixin:
    """Loss arguments, gradient checkpointing and the base model for Hugging Face's trainers."""

    #: Trainer counts the supervised tokens of all micro-batches and passes `num_items_in_batch`.
    accepts_loss_kwargs = True
    checkpoint_layers: bool
    vision: Any
    supports_gradient_checkpointing = True

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """Let the decoder loop and the vision tower recompute their layers in the backward pass.

        Raises:
            SettingError: If only some layers or operations shall be recomputed, or activations
                moved to the host.
        """
        func: Any = gradient_checkpointing_func
        func, options = (func.func, func.keywords) if isinstance(func, partial) else (func, {})
        if enable and (every_n_layers != 1 or func is not checkpoint or "context_fn" in options):
            raise SettingError(
                "Gradient checkpointing recomputes every layer as a whole; leave out"
                " every_n_layers, offload and context_fn (in TRL: selective)."
            )
        self.gradient_checkpointing = enable

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass; the same as `checkpoint_layers`."""
        return self.checkpoint_layers

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.checkpoint_layers = self.vision.checkpoint_layers = enable

    @property
    def base_model(self) -> Any:
        """The model up to the language head: TRL calls it in place of `forward`."""
        return _BaseModel(self)


class _BaseModel:
    """Computes hidden states with images and router; everything else is the text model's.

    Args:
        model: Model whose `hidden_states` are called.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.hidden_states(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model.language, name)


def keep_instruction_end(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook: tell the router where the answers begin if TRL takes the labels away.

    Its fused language head is given `labels`, but calls `base_model` without them.
    """
    labels = kwargs.get("labels")
    if not kwargs.get("fused_lm_head") or labels is None or "instruction_end" in kwargs:
        return None
    supervised = labels != IGNORE
    first = supervised.int().argmax(1)
    end = first.where(supervised.any(1), first.new_tensor(labels.shape[1]))
    return args, {**kwargs, "instruction_end": end}
