"""Name the engine that a `trainer` section chooses: one process, DDP, FSDP2 or DeepSpeed ZeRO.

Pre-flight and `dpn.plan` decide by this name; `dpn.config.build.trainer` builds the strategy.
"""

from collections.abc import Mapping

from dpn.common.processes import processes
from dpn.config import targets
from dpn.runs.request import Node


def engine_of(trainer: Node) -> str:
    """Return the name of the engine: `single`, `ddp`, `fsdp2`, `zero2` or `zero3`.

    Classes in `dpn.training.strategies` name their engine themselves. For any other strategy,
    return the name or the `_target_` in the config.
    """
    strategy = trainer.get("strategy") or "auto"
    if isinstance(strategy, Mapping):
        target = str(strategy["_target_"])
        engine = getattr(targets.resolve(target), "engine", None)
        return target if engine is None else engine(strategy)
    if strategy == "auto":
        return "ddp" if processes(trainer) > 1 else "single"
    return "ddp" if strategy.startswith("ddp") else strategy


def is_deepspeed(engine: str) -> bool:
    """Whether the engine with this name from `engine_of` is DeepSpeed."""
    return engine.startswith(("zero", "deepspeed")) or "DeepSpeed" in engine
