"""Memory of a training step on a GPU, computed without one.

A whole step of the real model runs on fake tensors (`dry_run.py`), in the precision that the
engine would use. Every storage is counted for as long as it lives, every matrix product by torch's
own formulas. Only what an engine does around the model (sharding, gathering, reducing) is a
formula, see `_engine_bytes`.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpn.measure.dry_run import RowsSetting, Step, training_step
from dpn.metrics.memory import ResourceMeter

if TYPE_CHECKING:
    from dpn.training.module import DPNModule


@dataclass(frozen=True)
class Setup:
    """How a run is spread over GPUs.

    Attributes:
        engine: `single`, `ddp`, `fsdp2`, `zero2` or `zero3`.
        half: Whether it computes in bf16 (`bf16-mixed`) or in fp32 (`32-true`).
        processes: Number of GPUs on all nodes.
        batch_size: Samples per GPU and micro-batch.
        rows_per_batch: Instead of `batch_size`, most rows of a micro-batch after the expected
            compression, see `dpn.data.row_budget`.
        reduce_bucket: Number of gradients that ZeRO reduces at once.
        live_parameters: Largest number of weights that ZeRO-3 keeps gathered.
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
    """Bytes on one GPU.

    Attributes:
        held: Bytes that stay through a step, by name.
        passing: Bytes that the forward and backward pass add at their peak, by name.
        update: Bytes that the optimizer adds while it steps, after those passes.
    """

    held: dict[str, int]
    passing: dict[str, int]
    update: int

    @property
    def total(self) -> int:
        """Bytes at the highest moment."""
        return sum(self.held.values()) + max(sum(self.passing.values()), self.update)


class Rehearsal:
    """Training steps on tensors without memory.

    Args:
        module: LightningModule on the meta device.
    """

    def __init__(self, module: "DPNModule"):
        self.module = module
        self._steps: dict[tuple[Any, ...], Step] = {}

    @cached_property
    def optimizer_bytes(self) -> tuple[int, int]:
        """Bytes of the optimizer's state, and bytes it adds while it steps, for all weights."""
        return _optimizer_bytes(self.module)

    def samples(self, setup: Setup, text: int) -> int:
        """Samples of a micro-batch if each has `text` text tokens and one image."""
        if setup.rows_per_batch is None:
            return setup.batch_size
        return setup.rows_per_batch // math.ceil(text + self.image_rows)

    @property
    def image_rows(self) -> float:
        """Rows that `data.rows_per_batch` counts for an image, as in training."""
        return self.module.model.router.expected_rows()

    def memory(self, setup: Setup, text: int) -> Memory:
        """Bytes on one GPU, with the most rows that the router can leave.

        Args:
            setup: Engine, precision and number of GPUs.
            text: Text tokens of each sample.
        """
        ways: tuple[RowsSetting, ...] = ("most", "all") if self.module.dense else ("most",)
        steps = [self.step(setup, text, rows) for rows in ways]
        highest = max(steps, key=lambda step: sum(step.peak.values()))
        passing = _engine_bytes(setup, self.module)[1]
        passing |= {kind: size for kind, size in highest.peak.items() if size}
        update = self.optimizer_bytes[1] // _sharers(setup)
        if setup.engine.startswith("zero") and setup.half:  # gradients in fp32
            update += 4 * trained_elements(self.module) // _sharers(setup)
        return Memory(self.held(setup), passing, update)

    def held(self, setup: Setup) -> dict[str, int]:
        """Bytes that stay through a step, see `Memory`; they do not depend on the samples."""
        held = _engine_bytes(setup, self.module)[0]
        return held | {"optimizer states": self.optimizer_bytes[0] // _sharers(setup)}

    def step(self, setup: Setup, text: int, rows: RowsSetting) -> Step:
        """A step of one GPU's micro-batch of samples with one image of the native size each.

        Args:
            setup: Engine, precision and number of GPUs.
            text: Text tokens of each sample; the last half of them is supervised.
            rows: Action of the router: it leaves the `most` or the `fewest` rows that it can, or
                does not act (`all`).
        """
        router = self.module.model.router
        if rows == "fewest" and router.bound(most=True) is router.bound(most=False):
            rows = "most"
        dtype, autocast = _precision(setup)
        key = (self.samples(setup, text), text, rows, dtype, autocast)
        if key not in self._steps:
            probes = self.module.routing_loss.probe(0, 0) is not None
            self._steps[key] = training_step(self.module.model, *key, probes)
        return self._steps[key]


def _sharers(setup: Setup) -> int:
    """Number of GPUs over which the optimizer is sharded."""
    return 1 if setup.engine in ("single", "ddp") else setup.processes


def _precision(setup: Setup) -> tuple[torch.dtype, bool]:
    """Dtype of the weights in a pass, and whether autocast is on, as in Lightning's plugins."""
    whole = setup.engine in ("single", "ddp")
    dtype = torch.bfloat16 if setup.half and not whole else torch.float32
    return dtype, setup.half and not setup.engine.startswith("zero")


def _optimizer_bytes(module: "DPNModule") -> tuple[int, int]:
    """Bytes of the optimizer's state, and bytes it adds while it steps, for all weights."""
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
    """Bytes of weights and gradients on one GPU: those that stay, and those that pass.

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
    """Weights of each unit that `shard` makes; the gates of the router count as one unit."""
    model = module.model
    language = model.language
    parts = [*language.layers, language.embed_tokens, language.norm, model.lm_head]
    parts += [model.vision, model.projector, model.router, module.routing_loss]
    return [list(part.parameters()) for part in parts]
