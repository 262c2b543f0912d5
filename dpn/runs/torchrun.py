"""Jobs of a multirun that train with several processes, which torchrun starts."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from dpn.common.lifeline import CHECK_S, child_env
from dpn.common.processes import processes
from dpn.runs.folder import RunError, RunFolder
from dpn.runs.request import Request
from dpn.runs.signals import Interrupted, StopRequest


def needed(request: Request) -> bool:
    """Whether torchrun has to start the processes of a job.

    Slurm starts those of its own tasks; outside of a multirun, Lightning starts them.
    """
    alone = "WORLD_SIZE" not in os.environ and os.environ.get("SLURM_NTASKS", "1") == "1"
    return request.in_sweep and alone and processes(request.config.trainer) > 1


def run(request: Request, folder: RunFolder) -> None:
    """Run a request with torchrun.

    Raises:
        Interrupted: If the run was stopped by a signal.
        RunError: If the run failed.
    """
    import torch

    count = processes(request.config.trainer)
    threads = max(1, torch.get_num_threads() // count)
    given = child_env() | {"OMP_NUM_THREADS": str(threads)}
    start = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
    module, *overrides = request.command[2:]
    command = [sys.executable, "-m", *start, "-m", module, *overrides]
    code = _wait(command, os.environ | given)
    status = folder.status
    if status.get("status") == "interrupted":
        raise Interrupted(status["error"])
    if code and status.get("status") != "failed":
        error = RunError(f"Its {count} processes ended with status {code} without an error.")
        folder.record("failed", error)
        raise error
    if code:
        raise RunError(f"{status['error']} ({folder.path / 'log.txt'})")


def _wait(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command, forward one signal to it, and return its exit status."""
    stop, passed = StopRequest(), False
    stop.patient = True
    # In a new session, so that Ctrl-C does not reach its processes twice.
    with subprocess.Popen(command, env=environment, start_new_session=True) as child:
        stop.install()
        try:
            while child.poll() is None:
                if stop.signal and not passed:
                    child.terminate()
                    passed = True
                time.sleep(CHECK_S)
        except Interrupted:
            child.kill()
            raise
        finally:
            stop.restore()
    return child.returncode
