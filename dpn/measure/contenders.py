"""What `dpn.bench` compares: a model, the model without compression, and Hugging Face's own.

They share their weights, so one GPU holds them and only the code differs. All embed images and
text with the same tower and projector; Hugging Face's text model gets the rows as `inputs_embeds`.
"""

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dpn.data.batch import IGNORE
from dpn.decoder.layer import compile_layers
from dpn.measure.dry_run import fixed
from dpn.measure.load import Load
from dpn.metrics.speed import now
from dpn.model import DPNConfig, DPNForConditionalGeneration
from dpn.projectors.mlp import MLPProjector
from dpn.vision import Needs

Batch = Mapping[str, Tensor]


class Contender(Protocol):
    """An implementation that answers prompts and trains.

    Attributes:
        parts: Its modules: `vision`, `projector`, `text`, `head`, `router` if there is one, and
            `whole`.
    """

    parts: dict[str, nn.Module]

    def prompt(self, batch: Batch) -> tuple[Tensor, Any]:
        """Prefill: logits of the last column, `[B, 1, vocabulary]`, and the cache."""

    def token(self, ids: Tensor, cache: Any) -> Tensor:
        """Decoding: logits of `[B, 1]` new ids; extends the cache."""

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of supervised tokens."""


class Ours:
    """A `DPNForConditionalGeneration`."""

    def __init__(self, model: DPNForConditionalGeneration):
        self.model = model
        self.parts: dict[str, nn.Module] = {
            "whole": model,
            "vision": model.vision,
            "projector": model.projector,
            "router": model.router,
            "text": model.language,
            "head": model.lm_head,
        }

    def prompt(self, batch: Batch) -> tuple[Tensor, Any]:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        out = self.model(**inputs, use_cache=True, logits_to_keep=1)
        return out.logits, out.past_key_values

    def token(self, ids: Tensor, cache: Any) -> Tensor:
        return self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits

    def loss(self, batch: Batch) -> Tensor:
        return self.model(**batch).loss


class HuggingFace:
    """Hugging Face's causal language model behind our tower and projector, for batches without
    padding whose images are in column 1.
    """

    def __init__(self, model: DPNForConditionalGeneration):
        self.vision, self.projector = model.vision, model.projector
        with torch.device("meta"):
            self.text: Any = AutoModelForCausalLM.from_config(
                model.config.text_config, attn_implementation="sdpa"
            )
        self.text.model.load_state_dict(model.language.state_dict(keep_vars=True), assign=True)
        self.text.model.rotary_emb = model.language.rotary_emb
        self.text.lm_head = model.lm_head
        if model.checkpoint_layers:
            new = getattr(self.text, "activation_checkpointing_enable", None)
            (new or self.text.gradient_checkpointing_enable)()  # the older name
        self.parts: dict[str, nn.Module] = {
            "whole": self.text,
            "vision": self.vision,
            "projector": self.projector,
            "text": self.text.model,
            "head": self.text.lm_head,
        }

    def prompt(self, batch: Batch) -> tuple[Tensor, Any]:
        out = self.text(inputs_embeds=self.rows(batch), use_cache=True, logits_to_keep=1)
        return out.logits, out.past_key_values

    def token(self, ids: Tensor, cache: Any) -> Tensor:
        return self.text(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits

    def loss(self, batch: Batch) -> Tensor:
        # Logits of supervised columns only, as our model computes them.
        supervised = int((batch["labels"][0] != IGNORE).sum()) + 1
        return self.text(
            inputs_embeds=self.rows(batch),
            labels=batch["labels"][:, -supervised:],
            logits_to_keep=supervised,
            use_cache=False,
        ).loss

    def rows(self, batch: Batch) -> Tensor:
        """Embedded text and visual rows, `[B, T - 1 + V, D]`."""
        ids, pixels = batch["input_ids"], batch.get("pixel_values")
        embed = self.text.get_input_embeddings()
        if pixels is None:
            return embed(ids)
        text = embed(torch.cat([ids[:, :1], ids[:, 2:]], 1))
        sizes = [(pixels.shape[2], pixels.shape[3])] * len(pixels)
        features = self.projector(self.vision.features(pixels.to(text.dtype), sizes))
        visual = features.tokens.unflatten(0, (len(ids), -1))
        return torch.cat([text[:, :1], visual, text[:, 1:]], 1)


def contenders(config: DPNConfig, load: Load, device: str) -> dict[str, Any]:
    """Contenders with random weights: `ours`, the model of a configuration; `none`, the same with
    `router=none projector=mlp`; and `hf`.
    """
    torch.manual_seed(load.seed)
    with torch.device(device):
        model = DPNForConditionalGeneration(config)
    model.to(getattr(torch, load.dtype))
    model.attention = load.attention
    if load.compile_layers:
        compile_layers(model.language)
    model.checkpoint_layers = model.vision.checkpoint_layers = load.checkpoint_layers
    plain = without_compression(model)
    model.router = fixed(model.router, load.route)
    return {"ours": Ours(model), "none": Ours(plain), "hf": HuggingFace(plain)}


def uncompressed(config: DPNConfig) -> DPNConfig:
    """Copy of a configuration with LLaVA's projector and no router."""
    config = copy.deepcopy(config)
    config.router_config, config.projector_config = {"name": "none"}, {"name": "mlp"}
    return config


def without_compression(model: DPNForConditionalGeneration) -> DPNForConditionalGeneration:
    """Model of the `uncompressed` configuration with the same tower, text model and head."""
    with torch.device("meta"):
        plain = DPNForConditionalGeneration(uncompressed(model.config))
    plain.vision = copy.copy(model.vision)
    plain.vision.needs = Needs()
    plain.language, plain.lm_head = model.language, model.lm_head
    if isinstance(model.projector, MLPProjector):
        plain.projector = model.projector
    else:
        with torch.device(model.device):
            projector = MLPProjector(
                input_size=model.projector.input_size,
                output_size=model.projector.output_size,
                grid=model.projector.grid,
            )
        plain.projector = projector.to(model.dtype)
    plain.attention, plain.checkpoint_layers = model.attention, model.checkpoint_layers
    return plain


@torch.inference_mode()
def answer(contender: Contender, batch: Batch, new_tokens: int) -> dict[str, float]:
    """Seconds of a greedy answer: `prefill` until the first token, `decode` per later token, and
    `answer` in all.
    """
    start = now()
    logits, cache = contender.prompt(batch)
    ids = logits[:, -1:].argmax(-1)
    first = now()
    for _ in range(new_tokens - 1):
        ids = contender.token(ids, cache)[:, -1:].argmax(-1)
    end = now()
    if new_tokens < 2:
        return {"prefill": first - start}
    later = new_tokens - 1
    return {"prefill": first - start, "decode": (end - first) / later, "answer": end - start}


def train_step(contender: Contender, batch: Batch) -> dict[str, float]:
    """Seconds of a forward and a backward pass."""
    start = now()
    contender.loss(batch).backward()
    took = now() - start
    for part in contender.parts.values():
        part.zero_grad(set_to_none=True)
    return {"train_step": took}


def weights(contender: Contender) -> list[Tensor]:
    """All weights of a contender, some of them more than once."""
    return [weight for part in contender.parts.values() for weight in part.parameters()]


def set_training(contender: Contender, training: bool) -> None:
    """Switch all parts of a contender to training or evaluation mode."""
    for part in contender.parts.values():
        part.train(training)
