"""How many processes there are, and which one this is: known before torch is imported."""

import os
from collections.abc import Mapping
from typing import Any


def is_first_process() -> bool:
    """Whether this is the process of a distributed run that writes files and prints.

    It is read from the environment, since the Trainer does not exist yet.
    """
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def processes(trainer: Mapping[str, Any]) -> int:
    """Number of processes that a `trainer` section trains with, on all nodes."""
    if "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ:  # torchrun knows
        return int(os.environ["WORLD_SIZE"])
    devices = trainer.get("devices", 1)
    if isinstance(devices, list):
        count = len(devices)
    elif devices in ("auto", -1, "-1"):
        import torch

        on_gpu = trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
        count = torch.cuda.device_count() if on_gpu else 1
    else:
        count = int(devices)
    return count * int(trainer.get("num_nodes", 1))
