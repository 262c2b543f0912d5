"""Two processes give what one gives with the same global batch."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dpn.checkpoints.distributed import read_index
from dpn.common.files import read_rows
from dpn.data.sampler import BatchSampler
from tests.app.conftest import tiny_run

VARIED = ["trainer.accumulate_grad_batches=2", "model.processor.image_mode=none"]
HEADS = "{name: head_pruning, scores: [[0, 1], [1, 0], [1, 1], [0, 0]], keep_layers: 0}"
LENS = "{name: redundancy_lens, reduced: 4, window: 2, probe: 4}"
LOSSES = {
    "hinge": ["loss=hinge"],
    "policy": ["loss=policy", "router.keep=0.6"],
    "budget": ["loss=budget", "router.keep=0.6", "router.reduce=conv", *VARIED],
    "attention": ["router=pyramid_drop", *VARIED],
    "plans": ["router=chain", f"router.routers=[{HEADS},{LENS}]", *VARIED],
    "depth": ["router=depth_routing", *VARIED],
    "exit": ["router=dyvte", "router.hidden=8", "stage=gates", *VARIED],
}
ZERO = "trainer.strategy.config.zero_optimization"
ENGINES = {
    "ddp": ["trainer=ddp"],
    "fsdp2": ["trainer=fsdp2", "trainer.precision=32-true"],
    "zero2": ["trainer=deepspeed_zero2", "trainer.precision=32-true"],
    "zero3": [
        "trainer=deepspeed_zero3",
        "trainer.precision=32-true",
        f"{ZERO}.stage3_param_persistence_threshold=0",  # else nothing so small would be sharded
    ],
}
ROWS, BATCH, STEPS = 16, 4, 6
TWO = ["trainer.accelerator=cpu", "trainer.devices=2", f"data.batch_size={BATCH // 2}"]
#: Trains as the command line does, but supervises no token of rows whose id says so.
SCRIPT = """
import os, signal, sys
os.environ["DS_ACCELERATOR"] = "cpu"
import dpn.data.rows as rows
from dpn.train import main
sample = rows.Conversations.sample
def masked(self, row, *arguments, **meta):
    made = sample(self, row, *arguments, **meta)
    if "silent" in made.meta["id"] and type(self) is rows.Conversations:
        made.labels[:] = [-100] * len(made.labels)
    return made
rows.Conversations.sample = masked
if "deepspeed" in " ".join(sys.argv):  # runs on CPU processes, too, once Lightning lets it
    import deepspeed, lightning.pytorch.strategies.deepspeed as strategies
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # gloo needs no compiler
    strategies.CUDAAccelerator = object
    strategies._validate_device_index_selection = lambda devices: None
    initialize = deepspeed.initialize
    def with_rank(args, **further):
        args.device_rank = int(os.environ.get("LOCAL_RANK", 0))
        return initialize(args=args, **further)
    deepspeed.initialize = with_rank
if "STOP_AFTER" in os.environ and os.environ.get("LOCAL_RANK") == "1":
    import dpn.training.callbacks as callbacks
    check = callbacks.StopAfterStep.on_train_batch_end
    def signalled(self, trainer, *arguments):
        if trainer.global_step == int(os.environ["STOP_AFTER"]):
            os.kill(os.getpid(), signal.SIGUSR1)
        check(self, trainer, *arguments)
    callbacks.StopAfterStep.on_train_batch_end = signalled
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def mixed(squares, tmp_path_factory):
    """The squares, where a process sees a step without image, one without supervised token, and one
    with images of two sizes.
    """
    folder = tmp_path_factory.mktemp("mixed") / "squares"
    shutil.copytree(squares, folder)
    rows = json.loads((folder / "train.json").read_text())
    order = BatchSampler(ROWS, BATCH)
    for row in order.batch(1)[:2]:  # what the first of two processes takes
        without_image(rows[row])
    for row in order.batch(2)[2:]:  # what the second one takes
        rows[row]["id"] += "-silent"
    small = order.batch(3)[0]  # an image of another size, where `image_mode=none` leaves it
    with Image.open(folder / rows[small]["image"]) as image:
        image.resize((16, 24)).save(folder / f"{small}.png")
    rows[small]["image"] = f"{small}.png"
    (folder / "train.json").write_text(json.dumps(rows))
    rows = json.loads((folder / "val.json").read_text())
    for row in rows[2:]:  # the second one validates without images and supervised tokens
        without_image(row)
        row["id"] += "-silent"
    (folder / "val.json").write_text(json.dumps(rows))
    return folder


def without_image(row):
    del row["image"]
    turn = row["conversations"][0]
    turn["value"] = turn["value"].replace("<image>", "")


def run(overrides, folder, **environment):
    """The exit status of a run."""
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    command = [sys.executable, script, *overrides, f"paths.run_dir={folder}"]
    environment = os.environ | environment
    return subprocess.run(
        command, stdout=subprocess.DEVNULL, timeout=300, env=environment
    ).returncode


def train(overrides, folder):
    """The weights that a run ends with."""
    assert run(overrides, folder) == 0
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module", params=LOSSES)
def single(request, mixed, tmp_path_factory):
    """Overrides, folder and weights of a run of one process."""
    folder = tmp_path_factory.mktemp(request.param) / "one"
    # Plain SGD: Adam divides by the size of gradients, which blows up rounding of tiny ones.
    common = [*tiny_run(mixed, folder.parent), *LOSSES[request.param]]
    common += ["optim=sgd", "stage.dense=0", f"trainer.max_steps={STEPS}"]
    return common, folder, train([*common, f"data.batch_size={BATCH}"], folder)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_equal_one(engine, single):
    common, one, expected = single
    folder = one.with_name(engine)
    weights = train([*common, *ENGINES[engine], *TWO], folder)
    assert all(torch.allclose(weights[k], expected[k], atol=1e-5) for k in expected)
    answers = [
        [(row["id"], row["turn"], row["rows"]) for row in read_rows(f / "rows.jsonl")]
        for f in (one, folder)
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_a_stopped_run_goes_on_from_the_last_whole_checkpoint(engine, squares, tmp_path):
    """A signal reaches the second process after step 3; then a file of that step is cut short."""
    options = [*ENGINES[engine], *TWO, *LOSSES["policy"], "optim=adamw"]
    command = [*tiny_run(squares, tmp_path), *options]
    expected = train(command, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    assert run(command, stopped, STOP_AFTER="3") == os.EX_TEMPFAIL
    newest = stopped / "checkpoints" / "step-0000003.ckpt"
    largest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1)
    weights = train(command, stopped)
    log = (stopped / "log.txt").read_text()
    assert f"step-0000003.ckpt is damaged ({largest.relative_to(newest)} is cut short)" in log
    assert all(torch.equal(weights[k], expected[k]) for k in expected)
    if engine == "fsdp2":
        saved = read_index(stopped / "checkpoints" / "step-0000006.ckpt").state_dict_metadata
        assert len(saved["state_dict.model.lm_head.weight"].chunks) == 2  # sharded, not copied
