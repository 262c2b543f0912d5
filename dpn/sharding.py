"""FSDP2: every process holds a share of each unit's weights.

A unit is a decoder layer, or what is called outside of the layers; every process calls all units
of a step in the same order, whatever its samples and their routes are.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dpn.files import write_json
from dpn.model import DPNForConditionalGeneration
from dpn.routers.dpe import GATES

#: File of a checkpoint folder that holds the size of each other file in bytes.
SIZES = "sizes.json"


class FSDP2(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy over all processes, with data parallelism alone.

    A checkpoint is a folder with a file of each process, written under another name first.
    """

    def setup_environment(self) -> None:
        """Before the mesh is made, one axis over all processes."""
        self._data_parallel_size, self._tensor_parallel_size = (
            self.num_nodes * self.num_processes,
            1,
        )
        super().setup_environment()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """See the base class; the folder gets its name once it is whole."""
        path = Path(self.broadcast(filepath))
        fresh = path.with_name(f".{path.name}.tmp")
        super().save_checkpoint(checkpoint, fresh, storage_options)
        self.barrier()
        if self.global_rank == 0:
            write_json(fresh / SIZES, {file.name: file.stat().st_size for file in fresh.iterdir()})
            shutil.rmtree(path, ignore_errors=True)
            os.replace(fresh, path)
        self.barrier()


def shard(
    model: DPNForConditionalGeneration,
    routing_loss: nn.Module,
    mesh: DeviceMesh,
    half: torch.dtype | None,
) -> None:
    """Shard a model in place.

    Args:
        model: as it was built.
        routing_loss: whose value heads are sharded too.
        mesh: of all processes.
        half: what to compute in; None: as the weights are.
    """
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    for module in (*model.router.modules(), *routing_loss.modules()):
        if isinstance(module, tuple(GATES.values())):  # computes in fp32
            fully_shard(module, mesh=mesh)
    language = model.language
    units = [*language.layers, language.embed_tokens, language.norm, model.lm_head]
    for unit in (*units, model.vision, model.projector):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def whole_state(model: nn.Module) -> dict[str, Any]:
    """All weights of a sharded model on the CPU of the first process; empty on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    from torch.distributed.tensor import DTensor

    return dist.is_initialized() and any(isinstance(p, DTensor) for p in model.parameters())
