"""Forward and backward passes of a whole model on fake tensors, which have shapes and no memory.

What a pass leaves for the backward pass, with checkpointing or without, is so counted as the code
really does it, and what rows a router leaves is known from its configuration alone, for 7B or 13B
shapes within a second.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils.hooks import RemovableHandle

from dpn.cost import Cost, costs, visual_macs_ratio
from dpn.data.batch import IGNORE
from dpn.metrics.memory import ResourceMeter
from dpn.model import DPNConfig, DPNForConditionalGeneration, meta_model
from dpn.routers.base import Router
from dpn.tokens import Trace

#: What a router does: chooses itself, leaves the most or the fewest rows that it can, or pools with
#: a kernel at each of its layers, see `Router.forced`.
Route = Literal["own", "most", "fewest"] | Sequence[Any]
#: The same, or it does not act.
Rows = Route | Literal["all"]


@dataclass(frozen=True)
class Step:
    """What was seen of the forward and backward passes of a micro-batch.

    Attributes:
        saved: bytes that the forward pass leaves for the backward pass.
        saved_by_layer: of these, what each decoder layer makes, with what a router does after it.
        peak: bytes at the highest moment, see `ResourceMeter`.
        flops: of both passes, recomputed layers included.
        share: mean visual MACs against those of the tower's uncompressed tokens.
    """

    saved: int
    saved_by_layer: tuple[int, ...]
    peak: dict[str, int]
    flops: int
    share: float


class NeedsData(ValueError):
    """A configuration alone does not tell how many rows there are."""


def cost_of(config: DPNConfig, text_columns: int, route: Route = "most") -> Cost:
    """What a sample with one image of the native size costs, see `prefill`."""
    model, trace = prefill(config, text_columns, route)
    return costs(model, trace, [text_columns])[0]


def prefill(
    config: DPNConfig, text_columns: int, route: Route = "most"
) -> tuple[DPNForConditionalGeneration, Trace]:
    """A prefill of one sample with one image of the native size, from a configuration alone.

    Args:
        config: of the model.
        text_columns: of the sample, besides its image.
        route: what the router does.

    Raises:
        NeedsData: if rows depend on what an image shows.
    """
    model, batch = _faked(meta_model(config), torch.float32, 1, text_columns)
    model.router = fixed(model.router, route)
    del batch["labels"]
    try:
        with torch.no_grad():
            return model, model.eval()(**batch, logits_to_keep=1).trace
    except DataDependentOutputException:
        raise NeedsData("How many rows are left depends on what an image shows.") from None


def fixed(router: Router, route: Route) -> Router:
    """A router that takes a route, whatever the data are."""
    if isinstance(route, str):
        return router if route == "own" else router.rehearsed(most=route == "most")
    return router.forced(route)


def training_step(
    model: DPNForConditionalGeneration,
    batch_size: int,
    text: int,
    rows: Rows = "most",
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    probes: bool = False,
) -> Step:
    """A forward and a backward pass; every sample has one image of the native size.

    Args:
        model: on the meta device; stays as it is.
        batch_size: samples.
        text: text tokens of each sample, the last half of them supervised.
        rows: what the router does.
        dtype: of the weights.
        autocast: whether bf16 autocast is on.
        probes: whether the routing loss asks for a further pass of all rows.
    """
    model, batch = _faked(model, dtype, batch_size, text)
    for parameter in model.parameters():
        if parameter.requires_grad:  # gradients are the engine's
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    if rows != "all":
        model.router = fixed(model.router, rows)
    with ResourceMeter(model.parameters()) as meter:
        handles = _tell_places(model, meter)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model.train()(**batch, compress=rows != "all")
            saved = meter.live.total()
            by_layer = tuple(meter.made_by[i] for i in range(len(model.language.layers)))
            for handle in handles:
                handle.remove()
            if probes and rows != "all":
                with torch.no_grad():
                    model(**batch, compress=False)
        if out.loss.requires_grad:  # or only what a routing loss trains, gates, learns
            out.loss.backward()
    shares = visual_macs_ratio(out.trace, model.config.text_config)
    return Step(saved, by_layer, dict(meter.peak), meter.flops, sum(shares) / len(shares))


def make_batch(
    model: DPNForConditionalGeneration, images: int, text_columns: int, seed: int = 0
) -> dict[str, Tensor]:
    """Samples of one image of the native size and random text; the last half of it is an answer."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    width = text_columns + 1
    most = min(config.image_token_id, config.text_config.vocab_size)
    ids = torch.randint(5, most, (images, width), generator=generator)
    ids[:, 1] = config.image_token_id
    if config.router_token_id is not None:
        ids[:, width // 2] = config.router_token_id
    labels = ids.clone()
    labels[:, : width - supervised_columns(text_columns)] = IGNORE
    size = model.vision.image_size
    pixels = torch.randn(images, 3, size, size, generator=generator)
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


def supervised_columns(text_columns: int) -> int:
    """How many columns of a sample of `make_batch` are an answer."""
    return text_columns - (text_columns + 1) // 2


def _faked(
    model: DPNForConditionalGeneration, dtype: torch.dtype, batch_size: int, text: int
) -> tuple[DPNForConditionalGeneration, dict[str, Tensor]]:
    """A copy of a model whose weights are fake tensors, and a batch with fake images for it."""
    model = copy.deepcopy(model).to(dtype)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model.to_empty(device="cpu")
    batch = make_batch(model, batch_size, text)
    batch["pixel_values"] = fake.from_tensor(batch["pixel_values"])
    return model, batch


def _tell_places(model: DPNForConditionalGeneration, meter: ResourceMeter) -> list[RemovableHandle]:
    """Let a meter know which layer makes what, until the handles are removed."""

    def tell(place: int | str) -> Callable[..., None]:
        return lambda *_: setattr(meter, "place", place)

    layers = model.language.layers
    handles = [layer.register_forward_pre_hook(tell(i)) for i, layer in enumerate(layers)]
    return [*handles, layers[-1].register_forward_hook(tell("head"))]


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
