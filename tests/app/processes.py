"""Train with several processes on a CPU.

`python processes.py OVERRIDES` does what the command line does. Imports take most of the time of a
run so small, so `torchrun processes.py FILE.json` trains with each list of overrides in turn.
"""

import json
import os
import signal
import sys
from pathlib import Path

from dpn.config.compose import compose
from dpn.data.rows import Conversations
from dpn.train import main, train
from dpn.training import callbacks


def silence(sample):
    """Return `Conversations.sample` without supervised tokens where the id of a row says so."""

    def masked(self, row, *arguments, **meta):
        made = sample(self, row, *arguments, **meta)
        if "silent" in made.meta["id"] and type(self) is Conversations:
            made.labels[:] = [-100] * len(made.labels)
        return made

    return masked


def allow_deepspeed():
    """Let DeepSpeed run on CPU processes, which it can once Lightning lets it."""
    import deepspeed
    from lightning.pytorch.strategies import deepspeed as strategies

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # gloo needs no compiler
    strategies.CUDAAccelerator = object
    strategies._validate_device_index_selection = lambda devices: None
    initialize = deepspeed.initialize

    def with_rank(args, **further):
        args.device_rank = int(os.environ.get("LOCAL_RANK", 0))
        return initialize(args=args, **further)

    deepspeed.initialize = with_rank


def signal_after(step):
    """Send a signal to this process after a step."""
    check = callbacks.StopAfterStep.on_train_batch_end

    def signalled(self, trainer, *arguments):
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        check(self, trainer, *arguments)

    callbacks.StopAfterStep.on_train_batch_end = signalled


if __name__ == "__main__":
    file = Path(sys.argv[1])
    jobs = json.loads(file.read_text()) if file.suffix == ".json" else None
    Conversations.sample = silence(Conversations.sample)
    if "deepspeed" in str(jobs or sys.argv):
        allow_deepspeed()
    if "STOP_AFTER" in os.environ and os.environ.get("LOCAL_RANK") == "1":
        signal_after(int(os.environ["STOP_AFTER"]))
    if jobs is None:
        main()
    for job in jobs or ():
        train(compose("train", job))
