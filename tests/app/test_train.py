import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from dpn import inference
from dpn.common.files import read_json, read_rows
from dpn.config import build
from dpn.config.compose import compose
from dpn.inference import evaluation
from dpn.runs.signals import Interrupted
from dpn.train import train
from dpn.training.callbacks import Diverged, StepSeed
from dpn.training.resume import CompleteCheckpointIO, latest_checkpoint
from tests.app.conftest import tiny_run

#: Where runs must agree: weights nudged by 1e-7 before six steps end 5e-6 apart with AdamW, 8e-3
#: with Muon, whose orthogonal updates blow up differences of rounding.
ADAMW = "optim=adamw"


class AtStep(Callback):
    """Does something after a step, before it is saved."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.action(trainer)


def run(overrides, *callbacks):
    """A run with further callbacks."""
    with pytest.MonkeyPatch.context() as patch:
        make = build.trainer

        def trainer(*args):
            made = make(*args)
            made.callbacks[:0] = callbacks
            return made

        patch.setattr(build, "trainer", trainer)
        return train(compose("train", overrides))


def outputs_of(overrides):
    return next(Path(o.partition("=")[2]) for o in overrides if o.startswith("paths.output_root="))


def folder_of(overrides):
    (folder,) = (outputs_of(overrides) / "main").iterdir()
    return folder


def same_weights(first, second):
    mine, theirs = (load_file(f / "model" / "model.safetensors") for f in (first, second))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_run_leaves_what_it_promises(finished):
    metrics, rows = read_json(finished / "metrics.json"), read_rows(finished / "rows.jsonl")
    assert read_json(finished / "status.json")["status"] == "finished"
    promised = (
        "val/loss val/accuracy val/accuracy/plain val/accuracy/long time/train_s time/step_ms"
    )
    promised += " cost/visual_macs_ratio cost/prefill_flops router/kept/0 router/kept/3"
    assert set(promised.split()) <= metrics.keys()
    turns = [("val-0", 0), ("val-1", 0), ("val-1", 1), ("val-2", 0), ("val-3", 0), ("val-3", 1)]
    assert [(row["id"], row["turn"]) for row in rows] == turns
    assert rows[2]["prompt"] == "How many letters?"
    assert rows[2]["reference"] == "5"  # green
    assert rows[0]["rows"][0] == rows[0]["base_rows"] == 16
    # Routed wherever as many rows are left as the largest kernel, 2x2, has.
    assert set(rows[0]["route"]) == {str(n) for n in (0, 1, 2) if rows[0]["rows"][n] >= 4}
    names = ("config.yaml", "log.txt", "model/config.json", "figures/routes.png")
    assert all((finished / name).stat().st_size for name in names)
    curves = read_rows(finished / "curves.jsonl")
    assert [row["step"] for row in curves if "loss/language" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in curves if "val/loss" in row] == [3, 6]
    assert "figures/routes.png" in (finished / "report.md").read_text()


@pytest.mark.slow
def test_training_in_bfloat16_ends_with_a_model_in_bfloat16(tiny):
    folder = run([*tiny, "trainer.precision=bf16-mixed", "trainer.max_steps=2"])
    model, _ = inference.load(folder)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.startswith("router") else torch.bfloat16)
    ours, saved = model.state_dict(), load_file(folder / "model" / "model.safetensors")
    assert all(ours[name].equal(tensor) for name, tensor in saved.items())


def test_the_same_command_again_says_finished(finished, squares, capsys):
    before = (finished / "metrics.json").stat().st_mtime_ns
    assert run(tiny_run(squares, finished.parents[1])) == finished
    assert "Already finished" in capsys.readouterr().out
    assert (finished / "metrics.json").stat().st_mtime_ns == before


def crash(trainer):
    raise RuntimeError("crash")


def interrupt(trainer):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("step", "action", "error", "state", "saved"),
    [
        pytest.param(5, crash, RuntimeError, "failed", 4, marks=pytest.mark.slow),
        pytest.param(5, interrupt, Interrupted, "interrupted", 5, marks=pytest.mark.slow),
        (3, interrupt, Interrupted, "interrupted", 3),  # is validated first
    ],
)
def test_resumed_run_ends_with_the_same_weights(finished, tiny, step, action, error, state, saved):
    with pytest.raises(error):
        run(tiny, AtStep(step, action))
    folder = folder_of(tiny)
    assert read_json(folder / "status.json")["status"] == state
    assert latest_checkpoint(folder / "checkpoints").name == f"step-{saved:07d}.ckpt"

    first_steps = []
    run(tiny, AtStep(saved + 1, lambda trainer: first_steps.append(trainer.global_step)))
    assert first_steps == [saved + 1]
    assert same_weights(folder, finished)
    mine, whole = (read_json(f / "metrics.json") for f in (folder, finished))
    assert _timeless(mine) == _timeless(whole)
    curves = ([_timeless(row) for row in read_rows(f / "curves.jsonl")] for f in (folder, finished))
    assert next(curves) == next(curves) != []


def _timeless(figures):
    return {name: value for name, value in figures.items() if not name.startswith("time/")}


class InValidation(Callback):
    """A crash while a step is validated."""

    def on_validation_start(self, trainer, pl_module):
        crash(trainer)


def test_a_step_is_saved_with_its_validation(finished, tiny):
    often = [*tiny, "callbacks.checkpoint.every_n_train_steps=1"]
    with pytest.raises(RuntimeError, match="crash"):
        run(often, InValidation())
    assert latest_checkpoint(folder_of(tiny) / "checkpoints").name == "step-0000002.ckpt"
    curves = [read_rows(folder / "curves.jsonl") for folder in (run(often), finished)]
    validated = [[row["val/loss"] for row in rows if "val/loss" in row] for rows in curves]
    assert validated[0] == validated[1]
    assert len(validated[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("step", "action"), [(5, crash), (3, interrupt)])
def test_a_step_is_saved_where_nothing_is_validated(tiny, step, action):
    blind = [*tiny, "data.val_file=null", "callbacks.checkpoint.every_n_train_steps=3"]
    with pytest.raises((RuntimeError, Interrupted)):
        run(blind, AtStep(step, action))
    assert latest_checkpoint(folder_of(tiny) / "checkpoints").name == "step-0000003.ckpt"


@pytest.mark.slow
def test_interrupted_evaluation_does_not_train_again(finished, tiny, monkeypatch):
    def stop(*args, **options):
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(evaluation, "evaluate_held_out", stop)
    with pytest.raises(Interrupted):
        run(tiny)
    monkeypatch.undo()
    steps = []
    folder = run(tiny, AtStep(6, lambda trainer: steps.append(6)))
    assert steps == []
    assert same_weights(folder, finished)
    mine, whole = (read_json(f / "metrics.json") for f in (folder, finished))
    assert mine["val/loss"] == whole["val/loss"]
    assert mine["time/train_s"] > 0


@pytest.mark.slow
def test_damaged_checkpoint_is_named_and_the_one_before_used(finished, tiny, caplog):
    with pytest.raises(RuntimeError):
        run(tiny, AtStep(5, crash))
    folder = folder_of(tiny)
    damaged = folder / "checkpoints" / "step-0000004.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    resumed_at = []
    run(tiny, AtStep(3, lambda trainer: resumed_at.append(3)))
    assert resumed_at == [3]  # from step 2
    assert f"{damaged} is damaged" in caplog.text
    assert same_weights(folder, finished)


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """The limit on file sizes makes writing fail as a full disk does: half way, from the system."""
    io, path = CompleteCheckpointIO(), tmp_path / "step.ckpt"
    io.save_checkpoint({"step": 1, "weight": torch.ones(10)}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match=r"step\.ckpt could not be written .* untouched"):
            io.save_checkpoint({"step": 2, "weight": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p.name for p in tmp_path.iterdir()] == ["step.ckpt"]
    assert io.load_checkpoint(path)["step"] == 1


@pytest.mark.slow
def test_full_disk_fails_the_run_and_it_resumes(finished, tiny, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="could not be written"):
        run(tiny, AtStep(3, lambda trainer: monkeypatch.setattr(torch, "save", full)))
    monkeypatch.undo()
    folder = folder_of(tiny)
    assert "No space left" in read_json(folder / "status.json")["error"]
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-0000002.ckpt"]
    run(tiny)
    assert same_weights(folder, finished)


def test_checkpoints_hold_no_code(finished):
    path = latest_checkpoint(finished / "checkpoints")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 6
    assert checkpoint["optimizer_states"]
    assert len(list(path.parent.iterdir())) == 2


def test_divergence_is_stopped_before_it_is_saved(tiny):
    def poison(trainer):
        with torch.no_grad():
            trainer.lightning_module.model.lm_head.weight.fill_(float("nan"))

    with pytest.raises(Diverged, match="not finite at step 4"):
        run(tiny, AtStep(3, poison))
    names = [p.name for p in (folder_of(tiny) / "checkpoints").iterdir()]
    assert names == ["step-0000002.ckpt"]


def test_random_numbers_follow_from_the_step():
    def drawn(seed=0, rank=0, step=3, batch=0):
        trainer = SimpleNamespace(global_rank=rank, global_step=step, accumulate_grad_batches=2)
        StepSeed(seed).on_train_batch_start(trainer, None, None, batch)
        return float(torch.rand(()))

    assert drawn() == drawn() == drawn(batch=2)
    assert len({drawn(), drawn(seed=1), drawn(rank=1), drawn(step=4), drawn(batch=1)}) == 5


@pytest.mark.slow
def test_accumulated_batches_equal_one_batch(tiny):
    """Halves of a window hold different numbers of tokens, so means of means would differ."""
    plain = [*tiny, "loss=language", ADAMW, "data.val_file=null"]
    whole = run(plain)
    halves = run([*plain, "data.batch_size=2", "trainer.accumulate_grad_batches=2"])
    mine, theirs = (load_file(f / "model" / "model.safetensors") for f in (whole, halves))
    assert all(torch.allclose(mine[k], theirs[k], atol=1e-5) for k in mine)


@pytest.mark.slow
def test_killed_process_leaves_a_run_that_goes_on(tiny):
    """SIGKILL, so nothing gets to clean up; then SIGTERM."""
    command = [sys.executable, "-m", "dpn.train", *tiny, "trainer.max_steps=100000"]
    process = subprocess.Popen(command)
    checkpoint = None
    while checkpoint is None:
        assert process.poll() is None
        time.sleep(0.2)
        checkpoint = next(outputs_of(tiny).glob("main/*/checkpoints/*.ckpt"), None)
    process.kill()
    process.wait()
    status = checkpoint.parent.parent / "status.json"
    assert read_json(status)["status"] == "running"

    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert any("Taking over" in line for line in again.stderr)
    while "step" not in again.stderr.readline():
        assert again.poll() is None
    again.terminate()
    assert again.wait() == os.EX_TEMPFAIL
    assert read_json(status)["status"] == "interrupted"
