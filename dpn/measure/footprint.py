"""What a training step takes from a GPU, found without one.

A whole step of the real model runs on fake tensors (`dry_run.py`), in the precision that the
engine would give it. Every storage is counted from when it appears until it is gone, every matrix
product by torch's own formulas. Only what an engine does around the model (sharding, gathering,
reducing) is a formula, see `_engine_bytes`.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpn.measure.dry_run import Rows, Step, training_step
from dpn.metrics.memory import ResourceMeter

if TYPE_CHECKING:
    from dpn.training.module import DPNModule


@dataclass(frozen=True)
class Setup:
    """How a run is spread over GPUs.

    Attributes:
        engine: `single`, `ddp`, `fsdp2`, `zero2` or `zero3`.
        half: whether it computes in bf16 (`bf16-mixed`) or in fp32 (`32-true`).
        processes: GPUs of all nodes.
        batch_size: samples per GPU and micro-batch.
        rows_per_batch: instead, most rows of it after the compression that is expected, see
            `dpn.data.row_budget`.
        reduce_bucket: gradients that ZeRO reduces at once, in elements.
        live_parameters: most weights that ZeRO-3 leaves gathered, in elements.
    """

    engine: str
    half: bool
    processes: int
    batch_size: int
    rows_per_batch: int | None = None
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


class Rehearsal:
    """Training steps on tensors without memory.

    Args:
        module: on the meta device.
    """

    def __init__(self, module: "DPNModule"):
        self.module = module
        self._steps: dict[tuple[Any, ...], Step] = {}

    @cached_property
    def optimizer_bytes(self) -> tuple[int, int]:
        """What the optimizer keeps, and what it takes besides while it steps, for all weights."""
        return _optimizer_bytes(self.module)

    def samples(self, setup: Setup, text: int) -> int:
        """Samples of a micro-batch if each has so many text tokens and one image."""
        if setup.rows_per_batch is None:
            return setup.batch_size
        return setup.rows_per_batch // math.ceil(text + self.image_rows)

    @property
    def image_rows(self) -> float:
        """What `data.rows_per_batch` counts for an image, as in training."""
        return self.module.model.router.expected_rows()

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
        update = self.optimizer_bytes[1] // _sharers(setup)
        if setup.engine.startswith("zero") and setup.half:  # gradients in fp32
            update += 4 * trained_elements(self.module) // _sharers(setup)
        return Memory(self.held(setup), passing, update)

    def held(self, setup: Setup) -> dict[str, int]:
        """What stays through a step, see `Memory`; whatever the samples are."""
        held = _engine_bytes(setup, self.module)[0]
        return held | {"optimizer states": self.optimizer_bytes[0] // _sharers(setup)}

    def step(self, setup: Setup, text: int, rows: Rows) -> Step:
        """A step of one GPU's micro-batch; every sample has one image of the native size.

        Args:
            setup: how the run is spread over GPUs.
            text: text tokens of each sample, the last half of them supervised.
            rows: what the router does: leaves the `most` or the `fewest` rows that it can, or does
                not act.
        """
        dtype, autocast = _precision(setup)
        key = (self.samples(setup, text), text, rows, dtype, autocast)
        if key not in self._steps:
            probes = self.module.routing_loss.probe(0, 0) is not None
            self._steps[key] = training_step(self.module.model, *key, probes)
        return self._steps[key]


def _sharers(setup: Setup) -> int:
    """Over how many GPUs the optimizer is shared out."""
    return 1 if setup.engine in ("single", "ddp") else setup.processes


def _precision(setup: Setup) -> tuple[torch.dtype, bool]:
    """What weights are computed with, and whether autocast is on, as Lightning's plugins do it."""
    whole = setup.engine in ("single", "ddp")
    dtype = torch.bfloat16 if setup.half and not whole else torch.float32
    return dtype, setup.half and not setup.engine.startswith("zero")


def _optimizer_bytes(module: "DPNModule") -> tuple[int, int]:
    """See `Rehearsal.optimizer_bytes`."""
    from dpn.training.module import parameter_groups

    optimizer = module.make_optimizer(parameter_groups(module, module.schedule))
    for group in optimizer.param_groups:
        if "foreach" in group:
            group["foreach"] = True  # what None means on a GPU
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    with ResourceMeter([*tensors, *(p.grad for p in tensors)]) as meter:
        optimizer.step()
    for parameter in tensors:
        parameter.grad = None
    kept = meter.live.total()
    return kept, meter.peak.total() - kept


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
    """The weights of each unit that `shard` makes; the gates of the router count as one."""
    model = module.model
    language = model.language
    parts = [*language.layers, language.embed_tokens, language.norm, model.lm_head]
    parts += [model.vision, model.projector, model.router, module.routing_loss]
    return [list(part.parameters()) for part in parts]
