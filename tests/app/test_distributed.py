"""Two processes give what one gives with the same global batch."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dpn.checkpoints.distributed import read_index
from dpn.common.files import read_rows
from dpn.config.compose import compose
from dpn.data.rows import Conversations
from dpn.data.sampler import BatchSampler
from dpn.train import train as start
from tests.app import processes
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
SCRIPT = Path(__file__).with_name("processes.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


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
    """Run the command line with several processes, and return its exit status."""
    command = [sys.executable, SCRIPT, *overrides, f"paths.run_dir={folder}"]
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, timeout=300, env=ENVIRONMENT | environment
    )
    return done.returncode


def train(overrides, folder):
    """Return the weights that a run ends with."""
    assert run(overrides, folder) == 0
    return weights(folder)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def overrides_of(loss, data, folder):
    # Plain SGD: Adam divides by the size of gradients, which blows up rounding of tiny ones.
    common = ["optim=sgd", "stage.dense=0", f"trainer.max_steps={STEPS}"]
    return [*tiny_run(data, folder), *LOSSES[loss], *common]


def uninterrupted(engine, data, folder):
    """Return the overrides of a run that another test stops and resumes."""
    return [*tiny_run(data, folder), *ENGINES[engine], *TWO, *LOSSES["policy"], "optim=adamw"]


@pytest.fixture(scope="module", params=LOSSES)
def single(request, mixed, tmp_path_factory):
    """Name of a loss, and folder of its run of one process."""
    folder = tmp_path_factory.mktemp("one") / request.param
    command = [*overrides_of(request.param, mixed, folder.parent), f"data.batch_size={BATCH}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conversations, "sample", processes.silence(Conversations.sample))
        start(compose("train", [*command, f"paths.run_dir={folder}"]))
    return request.param, folder


@pytest.fixture(scope="module")
def pair(mixed, squares, tmp_path_factory):
    """Function that returns the folder of the runs of two processes with an engine: one run for
    each loss, and `whole`.
    """

    @cache
    def trained(engine):
        folder = tmp_path_factory.mktemp(engine)
        jobs = [[*overrides_of(loss, mixed, folder), *ENGINES[engine], *TWO] for loss in LOSSES]
        jobs += [uninterrupted(engine, squares, folder)] * (engine != "ddp")
        for name, job in zip([*LOSSES, "whole"], jobs, strict=False):
            job.append(f"paths.run_dir={folder / name}")
        file = folder / "jobs.json"
        file.write_text(json.dumps(jobs))
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, "-m", *torchrun, SCRIPT, file]
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=900, env=ENVIRONMENT)
        return folder

    return trained


def each_engine(*names):
    """Parametrize a test; one worker runs all tests of an engine, since they share its runs."""
    return pytest.mark.parametrize(
        "engine", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
    )


@pytest.mark.slow
@each_engine(*ENGINES)
def test_two_processes_equal_one(engine, single, pair):
    loss, one = single
    two = pair(engine) / loss
    expected, found = weights(one), weights(two)
    assert all(torch.allclose(found[k], expected[k], atol=1e-5) for k in expected)
    answers = [
        [(row["id"], row["turn"], row["rows"]) for row in read_rows(f / "rows.jsonl")]
        for f in (one, two)
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
@each_engine("fsdp2", "zero2", "zero3")
def test_a_stopped_run_goes_on_from_the_last_whole_checkpoint(engine, pair, squares, tmp_path):
    """A signal reaches the second process after step 3; then a file of that step is cut short."""
    command = uninterrupted(engine, squares, tmp_path)
    expected = weights(pair(engine) / "whole")
    stopped = tmp_path / "stopped"
    assert run(command, stopped, STOP_AFTER="3") == os.EX_TEMPFAIL
    newest = stopped / "checkpoints" / "step-0000003.ckpt"
    largest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1)
    found = train(command, stopped)
    log = (stopped / "log.txt").read_text()
    assert f"step-0000003.ckpt is damaged ({largest.relative_to(newest)} is cut short)" in log
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    if engine == "fsdp2":
        saved = read_index(stopped / "checkpoints" / "step-0000006.ckpt").state_dict_metadata
        assert len(saved["state_dict.model.lm_head.weight"].chunks) == 2  # sharded, not copied
