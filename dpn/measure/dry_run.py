"""Forward and backward passes of a whole model on fake tensors, which have shapes but no memory.

The bytes saved for the backward pass, with or without checkpointing, are counted as the code
really saves them, and the rows that a router leaves follow from its configuration. For models of
7B or 13B that takes one or two seconds.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from dpn.common.errors import DPNError
from dpn.cost import Cost, costs, visual_macs_ratio
from dpn.data.batch import IGNORE
from dpn.measure.equal_layers import EqualLayers
from dpn.metrics.memory import ResourceMeter
from dpn.model import DPNConfig, DPNForConditionalGeneration, meta_model
from dpn.routers.base import Router
from dpn.tokens import Trace

#: Action of a router: it chooses itself, leaves the most or the fewest rows that it can, or pools
#: with a given kernel at each of its layers, see `Router.with_route`.
RouteSetting = Literal["own", "most", "fewest"] | Sequence[Any]
#: A `RouteSetting`, or `all`: the router does not act.
RowsSetting = RouteSetting | Literal["all"]


@dataclass(frozen=True)
class Step:
    """Memory and FLOPs of the forward and backward pass of a micro-batch.

    Attributes:
        saved: Bytes that the forward pass saves for the backward pass.
        saved_by_layer: Part of `saved` by decoder layer, including the router after it.
        peak: Bytes at the highest moment, see `ResourceMeter`.
        flops: FLOPs of both passes, with recomputed layers.
        share: Mean visual MACs divided by those of the tower's uncompressed tokens.
    """

    saved: int
    saved_by_layer: tuple[int, ...]
    peak: dict[str, int]
    flops: int
    share: float


class NeedsData(DPNError, ValueError):
    """The number of rows depends on the data, not on the configuration alone."""


def cost_of(config: DPNConfig, text_columns: int, route: RouteSetting = "most") -> Cost:
    """Cost of a sample with one image of the native size, see `prefill`."""
    model, trace = prefill(config, text_columns, route)
    return costs(model, trace, [text_columns])[0]


def prefill(
    config: DPNConfig,
    text_columns: int,
    route: RouteSetting = "most",
    meter: ResourceMeter | None = None,
) -> tuple[DPNForConditionalGeneration, Trace]:
    """Prefill one sample with one image of the native size, on fake tensors.

    Args:
        config: Configuration of the model.
        text_columns: Number of text columns of the sample.
        route: Action of the router.
        meter: Meter that counts the pass; one outside of this call would miss equal layers.

    Raises:
        NeedsData: If the number of rows depends on the content of the image.
    """
    model, batch = _faked(meta_model(config), torch.float32, 1, text_columns)
    model.router = fixed(model.router, route)
    del batch["labels"]
    try:
        with torch.no_grad(), meter or ResourceMeter() as meter:
            _count_equal_layers(model, meter)
            return model, model.eval()(**batch, logits_to_keep=1).trace
    except DataDependentOutputException:
        raise NeedsData("How many rows are left depends on what an image shows.") from None


def fixed(router: Router, route: RouteSetting) -> Router:
    """A router that acts as set, whatever the data are."""
    if isinstance(route, str):
        return router if route == "own" else router.bound(most=route == "most")
    return router.with_route(route)


def training_step(
    model: DPNForConditionalGeneration,
    batch_size: int,
    text: int,
    rows: RowsSetting = "most",
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    probes: bool = False,
) -> Step:
    """A forward and a backward pass of samples with one image of the native size each.

    Args:
        model: On the meta device; stays as it is.
        batch_size: Number of samples.
        text: Text tokens of each sample; the last half of them is supervised.
        rows: Action of the router, or `all`.
        dtype: Dtype of the weights.
        autocast: Whether bf16 autocast is on.
        probes: Whether the routing loss needs another pass with all rows.
    """
    model, batch = _faked(model, dtype, batch_size, text)
    for parameter in model.parameters():
        if parameter.requires_grad:  # gradients are counted with the engine
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    if rows != "all":
        model.router = fixed(model.router, rows)
    with ResourceMeter(model.parameters()) as meter:
        layers = _count_equal_layers(model, meter)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model.train()(**batch, compress=rows != "all")
            saved = meter.live.total()
            made_by = (layers.made_by[i] for i in range(len(model.language.layers)))
            by_layer = tuple(meter.made_by[place].total() for place in made_by)
            if probes and rows != "all":
                with torch.no_grad():
                    model(**batch, compress=False)
        meter.forward = False
        if out.loss.requires_grad:  # else only the routing loss trains anything
            out.loss.backward()
    shares = visual_macs_ratio(out.trace, model.config.text_config)
    return Step(saved, by_layer, dict(meter.peak), meter.flops, sum(shares) / len(shares))


def make_batch(
    model: DPNForConditionalGeneration, images: int, text_columns: int, seed: int = 0
) -> dict[str, Tensor]:
    """Samples of one image of the native size and random text, whose last half is an answer."""
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
    """Number of supervised columns of a sample of `make_batch`."""
    return text_columns - (text_columns + 1) // 2


def _faked(
    model: DPNForConditionalGeneration, dtype: torch.dtype, batch_size: int, text: int
) -> tuple[DPNForConditionalGeneration, dict[str, Tensor]]:
    """Copy of a model with fake tensors as weights, and a batch with fake images for it."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        memo = {id(x): _empty(x, dtype) for x in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, memo)
    batch = make_batch(model, batch_size, text)
    batch["pixel_values"] = fake.from_tensor(batch["pixel_values"])
    return model, batch


def _empty(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor or parameter of the same shape in memory; `dtype` is that of its numbers."""
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    data = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(data, tensor.requires_grad) if is_parameter else data


def _count_equal_layers(model: DPNForConditionalGeneration, meter: ResourceMeter) -> EqualLayers:
    """Compute runs of equal layers once, in the vision tower and in the decoder; return the
    decoder's.
    """
    if not model.vision.needs.layers:  # else outputs of layers are kept
        for stack in model.vision.modules():
            if isinstance(stack, nn.ModuleList):
                EqualLayers(stack, meter)
    return EqualLayers(model.language.layers, meter)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
