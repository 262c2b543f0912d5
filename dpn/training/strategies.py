"""Engines that shard weights, gradients and optimizer over the processes: FSDP2 and ZeRO.

The units of sharding are decoder layers, gates, and the modules outside of the layers. Every
process calls all units of a step in the same order, whatever its samples and their routes are.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from dpn.checkpoints.distributed import read_index
from dpn.common.files import write_json
from dpn.decoder.layer import DecoderLayer
from dpn.model import DPNForConditionalGeneration
from dpn.routers import Gate
from dpn.training._lightning import METADATA_FILE, only_data_parallel
from dpn.vision.base import VisionTower

#: File of a checkpoint folder with the size of each other file in bytes.
SIZES = "sizes.json"


class CompleteFolders(Strategy):
    """A strategy whose checkpoints are folders that all processes write; a folder gets its name
    once it is complete.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        path = Path(self.broadcast(filepath))
        fresh = path.with_name(f".{path.name}.tmp")
        super().save_checkpoint(checkpoint, fresh, storage_options)
        self.barrier()
        if self.is_global_zero:
            files = [file for file in fresh.rglob("*") if file.is_file()]
            sizes = {str(file.relative_to(fresh)): file.stat().st_size for file in files}
            write_json(fresh / SIZES, sizes)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(fresh, path)
        self.barrier()


class FSDP2(CompleteFolders, ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with data parallelism only, over all processes."""

    @staticmethod
    def engine(section: Mapping[str, Any]) -> str:
        """Name of the engine of a section `trainer.strategy`."""
        return "fsdp2"

    def setup_environment(self) -> None:
        """Set up a device mesh of one axis over all processes."""
        only_data_parallel(self)
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint whose optimizer may lack the state of some parameters, which the base
        class refuses: while the router does not act (stage.dense), gates have no gradient.
        """
        module, folder = self.lightning_module, Path(self.broadcast(checkpoint_path))
        assert module is not None
        saved = read_index(folder).state_dict_metadata
        with _only_data():
            state: dict[str, Any] = {"state_dict": get_model_state_dict(module)}
            dcp.load(state, checkpoint_id=folder)
            module.load_state_dict(state["state_dict"])
            for number, optimizer in enumerate(self.optimizers):
                key = f"optimizer_{number}"
                state = {key: get_optimizer_state_dict(module, optimizer)}
                planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
                dcp.load(state, checkpoint_id=folder, planner=planner)
                set_optimizer_state_dict(module, optimizer, state[key])
                for name, parameter in module.named_parameters():
                    if not any(entry.startswith(f"{key}.state.{name}.") for entry in saved):
                        optimizer.state.pop(parameter, None)
            return torch.load(folder / METADATA_FILE)

    def whole_state(self) -> dict[str, Any]:
        """All weights of the module on the CPU of the first process; empty on the others."""
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.lightning_module, options=options)


class ZeRO(CompleteFolders, DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy with our units of sharding and complete checkpoint folders."""

    @staticmethod
    def engine(section: Mapping[str, Any]) -> str:
        """Name of the engine of a section `trainer.strategy`: `zero` and its stage."""
        zero = (section.get("config") or {}).get("zero_optimization") or {}
        return f"zero{zero.get('stage', '')}"

    def setup(self, trainer: Any) -> None:
        """Tell DeepSpeed which modules it has to gather as a whole."""
        from deepspeed.runtime.zero import register_external_parameter
        from deepspeed.utils import set_z3_leaf_modules

        assert self.model is not None
        kinds = {type(module) for module in self.model.modules()}
        units = [kind for kind in kinds if issubclass(kind, (DecoderLayer, VisionTower, Gate))]
        set_z3_leaf_modules(self.model, units)
        for module in self.model.modules():
            if isinstance(module, (VisionTower, Gate)):
                module.register_forward_pre_hook(_want_input_gradients)
            elif isinstance(module, DPNForConditionalGeneration):
                for weights in _used_between_units(module):
                    register_external_parameter(module, weights)
        super().setup(trainer)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; apart from tensors and plain values, only DeepSpeed's own records."""
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        with _only_data(DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address):
            return super().load_checkpoint(checkpoint_path, weights_only)

    def whole_state(self) -> dict[str, Any]:
        """All weights of the module on the CPU of the first process; empty on the others."""
        import deepspeed

        assert self.lightning_module is not None
        state = {}
        for name, tensor in self.lightning_module.state_dict(keep_vars=True).items():
            with deepspeed.zero.GatheredParameters([tensor], enabled=self.zero_stage_3):
                if self.is_global_zero:
                    state[name] = tensor.detach().cpu().clone()
        return state


@contextmanager
def _only_data(*records: type) -> Iterator[None]:
    """Let torch unpickle nothing but tensors, plain values and `records` while the block runs."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals(list(records)):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _used_between_units(model: DPNForConditionalGeneration) -> list[nn.Parameter]:
    """Weights of the router outside of its gates."""
    gates = {
        p
        for module in model.router.modules()
        if isinstance(module, Gate)
        for p in module.parameters()
    }
    return [p for p in model.router.parameters() if p not in gates]


def _want_input_gradients(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Make a module's first input require a gradient.

    DeepSpeed releases a module's weights once the gradients of its inputs are there; if no input
    needs one, that is in the middle of the backward pass.
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
        inputs[0].requires_grad_()


def shard(
    model: DPNForConditionalGeneration,
    routing_loss: nn.Module,
    mesh: DeviceMesh,
    half: torch.dtype | None,
) -> None:
    """Shard a model with FSDP2, in place; a sharded model stays as it is.

    Args:
        model: Model to shard.
        routing_loss: Routing loss, whose value heads are sharded too.
        mesh: Mesh of one axis over all processes; FSDP2 would replicate over the first of two.
        half: Dtype to compute in; None: that of the weights.
    """
    if any(isinstance(p, DTensor) for p in model.parameters()):
        return
    for module in (*model.router.modules(), *routing_loss.modules()):
        if isinstance(module, Gate):  # computes in fp32
            fully_shard(module, mesh=mesh)
    language = model.language
    units = [*language.layers, language.embed_tokens, language.norm, model.lm_head]
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    for unit in (*units, model.vision, model.projector, model):
        fully_shard(unit.float(), mesh=mesh, mp_policy=policy)  # by unit: never whole in fp32
