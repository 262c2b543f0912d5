"""Two processes give what one gives with the same global batch."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dpn.data.sampler import BatchSampler
from dpn.files import read_json, read_rows
from tests.app.conftest import tiny_run

LOSSES = {"hinge": ["loss=hinge"], "policy": ["loss=policy", "router.keep=0.6"]}
ENGINES = {
    "ddp": ["trainer=ddp", "trainer.accelerator=cpu"],
    "fsdp2": ["trainer=fsdp2", "trainer.accelerator=cpu", "trainer.precision=32-true"],
}
ROWS, BATCH, STEPS = 16, 4, 6
#: Trains as the command line does, but supervises no token of rows whose id says so.
SCRIPT = """
import dpn.data.rows as rows
from dpn.train import main
sample = rows.Conversations.sample
def masked(self, row, *arguments, **meta):
    made = sample(self, row, *arguments, **meta)
    if "silent" in made.meta["id"] and type(self) is rows.Conversations:
        made.labels[:] = [-100] * len(made.labels)
    return made
rows.Conversations.sample = masked
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def mixed(squares, tmp_path_factory):
    """The squares, where a process sees one step without image and one without supervised token."""
    folder = tmp_path_factory.mktemp("mixed") / "squares"
    shutil.copytree(squares, folder)
    rows = json.loads((folder / "train.json").read_text())
    order = BatchSampler(ROWS, BATCH)
    for row in order.batch(1)[:2]:  # what the first of two processes takes
        del rows[row]["image"]
        turn = rows[row]["conversations"][0]
        turn["value"] = turn["value"].replace("<image>", "")
    for row in order.batch(2)[2:]:  # what the second one takes
        rows[row]["id"] += "-silent"
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


def train(overrides, folder):
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    command = [sys.executable, script, *overrides, f"paths.run_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_equal_one(loss, mixed, tmp_path):
    # Plain AdamW: what Muon does with differences of rounding, see test_train.py.
    common = [
        *tiny_run(mixed, tmp_path),
        *LOSSES[loss],
        "optim=adamw",
        f"trainer.max_steps={STEPS}",
    ]
    one = train([*common, f"data.batch_size={BATCH}"], tmp_path / "one")
    for engine, further in ENGINES.items():
        folder = tmp_path / engine
        two = train(
            [*common, f"data.batch_size={BATCH // 2}", "trainer.devices=2", *further], folder
        )
        assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
        first, second = (read_rows(f / "rows.jsonl") for f in (tmp_path / "one", folder))
        for row, same in zip(first, second, strict=True):
            assert [row[k] for k in ("id", "turn", "rows")] == [
                same[k] for k in ("id", "turn", "rows")
            ]
        assert read_json(folder / "status.json")["status"] == "finished"
