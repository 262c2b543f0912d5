"""What a training step takes from a GPU, found without one.

A whole step of the real model runs on fake tensors, which have shapes and no memory, in the
precision that the engine would give it. Every storage is counted from when it appears until it is
gone, every matrix product by torch's own formulas. So whatever the code saves for the backward
pass, with checkpointing or without, is in the count. Only what an engine does around the model
(sharding, gathering, reducing) is a formula, see `_engine_bytes`.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from dpn.bench import make_batch
from dpn.cost import visual_macs_ratio
from dpn.metrics.memory import Watch
from dpn.model import DPNForConditionalGeneration

if TYPE_CHECKING:
    from dpn.module import DPNModule

GIB = 2**30
Engine = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
Rows = Literal["most", "fewest", "all"]


@dataclass(frozen=True)
class Setup:
    """How a run is spread over GPUs.

    Attributes:
        engine: what shares the work out.
        half: whether it computes in bf16 (`bf16-mixed`) or in fp32 (`32-true`).
        processes: GPUs of all nodes.
        batch_size: samples per GPU and micro-batch.
        reduce_bucket: gradients that ZeRO reduces at once, in elements.
        live_parameters: most weights that ZeRO-3 leaves gathered, in elements.
    """

    engine: Engine
    half: bool
    processes: int
    batch_size: int
    reduce_bucket: int = 2**24
    live_parameters: int = 10**9


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU.

    Attributes:
        held: what stays through a step, by name.
        passing: what the forward and backward passes add at their peak, by name.
        update: what the optimizer adds while it steps, when the above has passed.
    """

    held: dict[str, int]
    passing: dict[str, int]
    update: int

    @property
    def total(self) -> int:
        """At the highest moment."""
        return sum(self.held.values()) + max(sum(self.passing.values()), self.update)


@dataclass(frozen=True)
class Step:
    """What was seen of the forward and backward passes of a micro-batch.

    Attributes:
        saved: bytes that the forward pass leaves for the backward pass.
        peak: bytes at the highest moment, see `Watch`.
        flops: of both passes, recomputed layers included.
        share: mean visual MACs against those of the tower's uncompressed tokens.
    """

    saved: int
    peak: dict[str, int]
    flops: int
    share: float


class Rehearsal:
    """Training steps on tensors without memory.

    Args:
        module: on the meta device.
    """

    def __init__(self, module: "DPNModule"):
        self.module = module
        self.optimizer_bytes, self.update_bytes = _optimizer_bytes(module)
        self._steps: dict[tuple[Any, ...], Step] = {}

    def memory(self, setup: Setup, text: int) -> Memory:
        """Bytes of one GPU, with the most rows that the router can leave.

        Args:
            setup: how the run is spread over GPUs.
            text: text tokens of each sample.
        """
        ways: tuple[Rows, ...] = ("most", "all") if self.module.dense else ("most",)
        steps = [self.step(setup, text, rows) for rows in ways]
        highest = max(steps, key=lambda step: sum(step.peak.values()))
        passing = _engine_bytes(setup, self.module)[1]
        passing |= {kind: size for kind, size in highest.peak.items() if size}
        update = self.update_bytes // _sharers(setup)
        if setup.engine.startswith("zero") and setup.half:  # gradients in fp32
            update += 4 * trained_elements(self.module) // _sharers(setup)
        return Memory(self.held(setup), passing, update)

    def held(self, setup: Setup) -> dict[str, int]:
        """What stays through a step, see `Memory`; whatever the samples are."""
        held = _engine_bytes(setup, self.module)[0]
        return held | {"optimizer states": self.optimizer_bytes // _sharers(setup)}

    def step(self, setup: Setup, text: int, rows: Rows) -> Step:
        """A step of one GPU's micro-batch; every sample has one image of the native size.

        Args:
            setup: how the run is spread over GPUs.
            text: text tokens of each sample, the last half of them supervised.
            rows: what the router does: leaves the `most` or the `fewest` rows that it can, or does
                not act.
        """
        dtype, autocast = _precision(setup)
        key = (dtype, autocast, setup.batch_size, text, rows)
        if key not in self._steps:
            probes = self.module.routing_loss.probe(0, 0) is not None
            self._steps[key] = _step(self.module.model, probes, *key)
        return self._steps[key]


def _sharers(setup: Setup) -> int:
    """Over how many GPUs the optimizer is shared out."""
    return 1 if setup.engine in ("single", "ddp") else setup.processes


def _precision(setup: Setup) -> tuple[torch.dtype, bool]:
    """What weights are computed with, and whether autocast is on, as Lightning's plugins do it."""
    whole = setup.engine in ("single", "ddp")
    dtype = torch.bfloat16 if setup.half and not whole else torch.float32
    return dtype, setup.half and not setup.engine.startswith("zero")


def _step(
    model: DPNForConditionalGeneration,
    probes: bool,
    dtype: torch.dtype,
    autocast: bool,
    batch_size: int,
    text: int,
    rows: Rows,
) -> Step:
    model = copy.deepcopy(model).to(dtype).train()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model.to_empty(device="cpu")
    for parameter in model.parameters():
        if parameter.requires_grad:  # gradients are the engine's
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    if rows != "all":
        model.router = model.router.rehearsed(most=rows == "most")
    batch = make_batch(model, batch_size, text)
    batch["pixel_values"] = fake.from_tensor(batch["pixel_values"])
    with Watch(model.parameters()) as watch:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(**batch, compress=rows != "all")
            saved = watch.live.total()
            if probes and rows != "all":  # a further pass, of all rows at most
                with torch.no_grad():
                    model(**batch, compress=False)
        if out.loss.requires_grad:  # or only what a routing loss trains, gates, learns
            out.loss.backward()
    shares = visual_macs_ratio(out.trace, model.config.text_config)
    return Step(saved, dict(watch.peak), watch.flops, sum(shares) / len(shares))


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _optimizer_bytes(module: "DPNModule") -> tuple[int, int]:
    """What the optimizer keeps, and what it takes besides while it steps, for all weights."""
    from dpn.module import parameter_groups

    optimizer = module.make_optimizer(parameter_groups(module, module.schedule))
    for group in optimizer.param_groups:
        if "foreach" in group:
            group["foreach"] = True  # what None means on a GPU
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    with Watch([*tensors, *(p.grad for p in tensors)]) as watch:
        optimizer.step()
    for parameter in tensors:
        parameter.grad = None
    kept = watch.live.total()
    return kept, watch.peak.total() - kept


def trained_elements(module: torch.nn.Module) -> int:
    """Number of trained weights."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _engine_bytes(setup: Setup, module: "DPNModule") -> tuple[dict[str, int], dict[str, int]]:
    """Weights and gradients of one GPU: what stays, and what passes.

    DDP keeps its buckets beside the gradients. FSDP2 keeps shards in fp32, gathers a unit and the
    next one in the precision of the run, and reduces in fp32. ZeRO keeps weights and gradients in
    the precision of the run, master weights and optimizer in fp32, and reduces in two buckets.
    """
    whole, trained = sum(p.numel() for p in module.parameters()), trained_elements(module)
    n, width = setup.processes, 2 if setup.half else 4
    if setup.engine in ("single", "ddp"):
        held = {"weights": 4 * whole, "gradients": 4 * trained}
        if setup.engine == "ddp":  # it reduces copies of the gradients
            held["gradient buckets"] = 4 * trained
        return held, {}
    if setup.engine == "fsdp2":
        units = _units(module)
        gathered = sorted((sum(p.numel() for p in unit) for unit in units), reverse=True)
        reduced = max(sum(p.numel() for p in unit if p.requires_grad) for unit in units)
        return {"weights": 4 * whole // n, "gradients": 4 * trained // n}, {
            "gathered weights": width * sum(gathered[:2]),
            "gradients being reduced": (width + 4) * reduced,
        }
    held = {
        "weights": width * whole // (n if setup.engine == "zero3" else 1),
        "master weights": 4 * trained // n,
        "gradients": width * trained // n,
    }
    buckets = 2 * width * min(setup.reduce_bucket, trained)
    if setup.engine == "zero2":
        return held, {"gradients being reduced": buckets}
    live = width * min(setup.live_parameters, whole)
    return held, {"gathered weights": live, "gradients being reduced": buckets}


def _units(module: "DPNModule") -> list[list[Tensor]]:
    """The weights of each unit of `dpn.strategies.shard`; the gates of the router count as one."""
    model = module.model
    language = model.language
    parts = [*language.layers, language.embed_tokens, language.norm, model.lm_head]
    parts += [model.vision, model.projector, model.router, module.routing_loss]
    return [list(part.parameters()) for part in parts]
