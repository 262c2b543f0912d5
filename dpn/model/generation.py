"""Support for Hugging Face's `generate` with images and a ragged cache."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from dpn.decoder.cache import RaggedCache
from dpn.model.arguments import check_arguments, check_generation
from dpn.model.inputs import end_columns

#: Image arguments of `forward`, which are read at prefill only.
IMAGE_INPUTS = ("pixel_values", "image_sizes", "image_sample")


class RaggedGenerationMixin(GenerationMixin):
    """Greedy search, sampling and beam search over any mix of samples with and without images."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        check_generation(vars(generation_config))
        if generation_config.use_cache is not False:
            model_kwargs.setdefault("past_key_values", RaggedCache())
            if model_kwargs["past_key_values"] is None:
                model_kwargs["past_key_values"] = RaggedCache()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Pass images to the first call of `forward`; without a cache to every call."""
        if "instruction_end" not in kwargs and is_first_iteration:
            mask = kwargs.get("attention_mask")
            kwargs["instruction_end"] = None if mask is None else end_columns(mask)
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        inputs.pop("position_ids", None)
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            for name in (*IMAGE_INPUTS, "sample_ids", "instruction_end"):
                inputs.pop(name, None)
        return inputs

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Run Hugging Face's `generate`; routers read the whole prompt as the instruction.

        Raises:
            SettingError: If the options choose another cache, or `inputs_embeds` are given.
        """
        check_generation(kwargs)
        ids = kwargs.get("input_ids", inputs)
        embeds = {"inputs_embeds": kwargs.get("inputs_embeds")}
        check_arguments(embeds, ids, None)
        if ids is not None and kwargs.get("instruction_end") is None:
            mask = kwargs.get("attention_mask")
            kwargs["instruction_end"] = end_columns(torch.ones_like(ids) if mask is None else mask)
        return super().generate(inputs, **kwargs)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat samples for beams or several sequences, together with their flat images."""
        images = {name: model_kwargs.pop(name, None) for name in IMAGE_INPUTS}
        if expand_size > 1 and images["pixel_values"] is not None:
            owner = images["image_sample"]
            if owner is None:
                owner = (input_ids == self.config.image_token_id).nonzero()[:, 0]
            # Copy r of sample b becomes sample b * expand_size + r.
            owners = (
                owner[:, None] * expand_size + torch.arange(expand_size, device=owner.device)
            ).flatten()
            images["image_sample"], order = owners.sort(stable=True)
            index = torch.arange(len(owner), device=owner.device).repeat_interleave(expand_size)[
                order
            ]
            for name in ("pixel_values", "image_sizes"):
                if images[name] is not None:
                    images[name] = images[name][index]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images}
