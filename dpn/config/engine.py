"""How a `trainer` section spreads a run over processes."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from dpn.common.distributed import processes
from dpn.runs.request import Node


def import_target(target: str) -> Any:
    """Import what a `_target_` names.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If the module has no such name.
        ValueError: If the name has no module.
    """
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def engine_of(trainer: Node) -> str:
    """Name of the engine: `single`, `ddp`, `fsdp2`, `zero2`, `zero3`, or another strategy's own.

    A strategy class of ours says it itself, see `dpn.training.strategies`.
    """
    strategy = trainer.get("strategy") or "auto"
    if isinstance(strategy, Mapping):
        target = str(strategy["_target_"])
        engine = getattr(import_target(target), "engine", None)
        return target if engine is None else engine(strategy)
    if strategy == "auto":
        return "ddp" if processes(trainer) > 1 else "single"
    return "ddp" if strategy.startswith("ddp") else strategy


def is_deepspeed(engine: str) -> bool:
    """Whether an engine, as `engine_of` names it, is DeepSpeed's."""
    return engine.startswith(("zero", "deepspeed")) or "DeepSpeed" in engine
