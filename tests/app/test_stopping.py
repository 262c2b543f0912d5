"""Commands that are stopped, or whose other processes are, end with one sentence."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from dpn import inference
from dpn.common import early_stop
from dpn.common.distributed import ProcessLost, lost_processes_named
from dpn.common.files import read_json
from dpn.common.lifeline import alive
from dpn.common.schema import check_arguments
from dpn.config import build
from dpn.config.compose import compose
from dpn.config.sections import Train
from tests.app.test_distributed import ENVIRONMENT, SCRIPT
from tests.app.test_train import folder_of

IMPORTS = {"SIGINT": 130, "SIGTERM": os.EX_TEMPFAIL, "SIGUSR1": os.EX_TEMPFAIL}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTS)
def test_a_signal_while_a_command_imports_is_a_sentence(name, tmp_path):
    command = [sys.executable, "-m", "dpn.train", f"paths.output_root={tmp_path}"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # Jobs in the background of a shell ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    assert process.wait(60) == IMPORTS[name]
    sentence = f"Stopped by {name}; the same command continues where it stopped.\n"
    assert process.stderr.read() == sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "is_command"),
    [
        (["python", "-m", "dpn.train", "seed=1"], True),
        (["python", "-u", "-m", "dpn.eval"], True),
        (["python", "/bin/dpn-train"], True),
        (["python", "-m", "pytest"], False),
        (["python", "-m"], False),
        (["python", "script.py", "-m", "x"], False),
        (["python"], False),
    ],
)
def test_only_commands_install_handlers(words, is_command, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "argv", words[1:])
    before = {signum: signal.getsignal(signum) for signum in early_stop._SIGNALS}
    try:
        early_stop.install()
        installed = signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        assert installed == is_command
        early_stop.imported()
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9", "ended"),
        ("[/gloo/unbound.cc:81] Timed out waiting 1800000ms for recv", "did not answer in time"),
    ],
)
def test_errors_of_the_process_group_are_a_sentence(said, sentence):
    with pytest.raises(ProcessLost, match=sentence), lost_processes_named():
        raise RuntimeError(said)


def test_other_errors_stay_as_they_are():
    for error in (RuntimeError("mat1 and mat2 cannot be multiplied"), ProcessLost("x")):
        with pytest.raises(type(error)) as caught, lost_processes_named():
            raise error
        assert caught.value is error


@pytest.mark.parametrize(("seconds", "fine"), [(0, False), (1, True), (700_000, False)])
def test_the_time_that_processes_wait_is_bounded(seconds, fine):
    found = check_arguments("", Train, {"timeout_s": seconds})
    assert any("timeout_s" in problem for problem in found) != fine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "seconds", "sentence"),
    [(signal.SIGKILL, 600, "ended"), (signal.SIGSTOP, 45, "did not answer in time")],
)
def test_a_lost_process_ends_the_run_with_a_sentence(tiny, tmp_path, signum, seconds, sentence):
    engine = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]
    further = [f"timeout_s={seconds}", "trainer.max_steps=100000", "trainer.val_check_interval=9"]
    command = [sys.executable, SCRIPT, *tiny, *engine, *further]
    second, said = None, tmp_path / "stderr"
    with said.open("w") as file:
        first = subprocess.Popen(command, stderr=file, env=ENVIRONMENT)
    try:
        while not list(Path(tiny[-1].partition("=")[2]).glob("main/*/checkpoints/*.ckpt")):
            assert first.poll() is None
            time.sleep(0.2)
        (second,) = psutil.Process(first.pid).children()
        second.send_signal(signum)
        assert first.wait(150) == 1
        assert not alive(second.pid)  # also if it was only stopped
    finally:
        first.kill()
        if second is not None and alive(second.pid):
            second.kill()
    assert f"Another process of this run {sentence}, so this one stops, too" in said.read_text()
    assert "Traceback" not in said.read_text()
    status = read_json(folder_of(tiny) / "status.json")
    assert status["status"] == "failed"
    assert status["error"].startswith("ProcessLost")


@pytest.mark.slow
def test_a_full_disk_names_what_could_not_be_written(finished, tmp_path):
    """The limit on file sizes makes writing fail as a full disk does."""
    model, processor = inference.load(finished, "cpu")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match=r"model could not be written to .*too large.*Make room"):
            inference.save(model, processor, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_strategies_of_several_processes_get_the_time(tiny, tmp_path):
    from dpn.runs.folder import RunFolder
    from dpn.training.callbacks import Clock

    engine = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "timeout_s=77"]
    request = compose("train", [*tiny, *engine])
    trainer = build.trainer(request.config, RunFolder(tmp_path), Clock())
    assert trainer.strategy._timeout.total_seconds() == 77
    assert torch.distributed.is_initialized() is False
