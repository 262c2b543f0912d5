"""Multiruns that survive: jobs that fail, repeat each other, are killed, and go on."""

import json
import os
import re
import signal
import socket
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from dpn.cli.diagnose import diagnose
from dpn.common.files import read_json, write_json, write_rows
from dpn.common.progress import has_terminal
from dpn.config import preflight
from dpn.config.compose import CONFIG_DIR, compose, compose_jobs
from dpn.runs.path import run_path, sweep_name
from dpn.runs.request import ConfigError
from dpn.runs.sweep_summary import summarize
from dpn.train import main, train
from tests.app.conftest import timeless, tiny_run
from tests.app.sweep_watch import SweepWatch, outcomes

SWEEPS = sorted(path.stem for path in (CONFIG_DIR / "sweep").glob("*.yaml"))


def test_jobs_are_those_that_hydra_numbers():
    command, jobs = compose_jobs("train", ["router=none,static", "router.keep=0.6,0.7"])
    said = [(job.config.router.name, job.config.router.keep) for job in jobs]
    assert said == [("none", None), ("none", None), ("static", 0.6), ("static", 0.7)]
    assert jobs[0].overrides == jobs[1].overrides == ("router=none",)
    assert len({run_path(job) for job in jobs}) == 3
    assert sweep_name(command).startswith("router-none-static_router.keep-0.6-0.7-")


def test_a_sweep_has_the_name_of_its_settings():
    request = compose("train")

    def name_of(*overrides):
        return sweep_name(replace(request, overrides=overrides))

    name = name_of("router=static,dpe", "seed=0,1")
    assert name == name_of("seed=0,1", "logger=none,csv", "router=static,dpe")
    assert name != name_of("router=static,dpe", "seed=0,2")
    request.config.optim.lr = 0.1
    assert name != name_of("router=static,dpe", "seed=0,1")


@pytest.mark.slow
def test_a_sweep_over_methods_finds_what_can_be_trained():
    _, jobs = compose_jobs("train", ["sweep=methods", "router.keep=0.6"])
    shares = {job.config.router.name: job.config.router.keep for job in jobs}
    assert len(shares) == len(jobs)
    assert {"static", "random", "dpe", "head_pruning", "depth_routing"} <= set(shares)
    assert set(shares).isdisjoint({"fastv", "vtw", "redundancy_lens", "chain"})
    assert shares.pop("none") is None
    assert set(shares.values()) == {0.6}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SWEEPS} - {"pareto_optuna"}))
def test_jobs_of_ready_sweeps_can_run(name):
    jobs = compose_jobs("train", [f"sweep={name}"])[1]
    assert len(jobs) > 1
    can_run = 0
    for job in jobs:
        assert not any(override.startswith("sweep") for override in job.overrides)
        try:
            preflight.check(job)
            can_run += 1
        except ConfigError as error:
            assert "tools/search.py" in str(error) or error.unreachable  # noqa: PT017
    assert can_run > len(jobs) / 2


@pytest.mark.parametrize(
    ("override", "package", "extra"),
    [
        ("hydra/launcher=slurm", "hydra_submitit_launcher", "slurm"),
        ("hydra/launcher=ray", "hydra_ray_launcher", "ray"),
        ("sweep=pareto_optuna", "hydra_optuna_sweeper", "optuna"),
    ],
)
def test_a_plugin_that_is_not_there(override, package, extra):
    found = diagnose("train", [override])
    if find_spec(f"hydra_plugins.{package}"):
        assert found == []
    else:
        (sentence,) = found
        assert f"pip install 'dpn[{extra}]'" in sentence


def sweep(monkeypatch, *arguments):
    """What a command line does in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["dpn-train", "-m", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.slow
def test_the_outcome_of_each_job_is_printed(tiny, tmp_path, monkeypatch, capsys):
    jobs = [*tiny, "router=none,static", "router.keep=0.01,5"]
    finished = run_path(compose("train", [*tiny, "router=none"]))
    write_json(finished / "status.json", {"status": "finished", "ended": 0.0})
    write_json(finished / "metrics.json", {"val/accuracy": 0.5, "cost/visual_macs_ratio": 1.0})
    write_rows(finished / "rows.jsonl", [])
    assert sweep(monkeypatch, *jobs) == 1
    expected = {"0, 1": "skipped", "2": "unreachable", "3": "failed"}
    assert outcomes(tmp_path / "outputs") == expected
    shown = capsys.readouterr()
    assert re.search(rf"^0, 1  skipped +none +1.000 +0.500 +{finished}$", shown.out, re.MULTILINE)
    assert "Job 1 is the same run as job 0." in shown.out
    assert "1 failed; the same command tries these again" in shown.err

    places = [path.parent for path in (tmp_path / "outputs").rglob("status.json")]
    statuses = {read_json(place / "status.json")["status"]: place for place in places}
    assert sorted(statuses) == ["failed", "finished", "unreachable"]
    log = (statuses["failed"] / "log.txt").read_text()
    assert "Traceback" in log
    assert "router.keep=5 must be" in log


def test_the_summary_names_router_projector_and_budget(tmp_path, capsys):
    typed = ["router=none", "router.keep=0.5"]
    both = {"router": {"name": "dpe", "keep": 0.4}, "projector": {"name": "pooled", "keep": 0.8}}
    for number, config in enumerate((both, {"projector": {"name": "mlp"}}, None, "[")):
        folder = tmp_path / f"run-{number}"
        entry = {"overrides": typed, "same_as": None, "folder": str(folder)}
        write_json(tmp_path / "sweep" / "jobs" / f"{number}.json", entry)
        if config is not None:
            folder.mkdir()
            (folder / "config.yaml").write_text(json.dumps(config) if config != "[" else config)
    summarize(tmp_path / "sweep", 0.0)
    lines = (tmp_path / "sweep" / "summary.md").read_text().splitlines()
    cells = [line.split(" | ")[2:4] for line in lines if line[:3] in ("| 0", "| 1", "| 2", "| 3")]
    assert cells == [["dpe + pooled", "0.4 0.8"], *[["none", "0.5"]] * 3]
    assert "dpe + pooled  0.4 0.8" in capsys.readouterr().out


def test_ctrl_c_ends_a_sweep(tiny, tmp_path, monkeypatch, capsys):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("dpn.config.build.data_module", stop)
    assert sweep(monkeypatch, *tiny, "seed=0,1") == 130
    assert "Stopped by SIGINT" in capsys.readouterr().err
    assert outcomes(tmp_path / "outputs") == {"0": "interrupted", "1": "not started"}


def test_jobs_beside_others_draw_no_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert has_terminal()
    monkeypatch.setenv("DPN_PARENT", f"1@{socket.gethostname()}")
    assert not has_terminal()


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_ends_as_if_it_was_not(squares, tmp_path):
    """Once the sweep itself, once a job; there are data workers, and a process without a job."""

    def jobs(name):
        return [*tiny_run(squares, tmp_path / name), "trainer.max_steps=60"]

    command = [sys.executable, "-m", "dpn.train", "-m", *jobs("killed"), "seed=0,1"]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "data.num_workers=1"]
    watch = SweepWatch([*command, *parallel], tmp_path / "killed")
    watch.start()
    watch.some_run_has_a_checkpoint()
    watch.kill()

    watch.start()
    os.kill(watch.some_run_has_a_checkpoint(), signal.SIGKILL)
    assert watch.end() == 1

    watch.start()
    assert watch.end() == 0
    assert {*outcomes(tmp_path / "killed").values()} <= {"ok", "skipped"}
    for job in range(2):
        assert f"\njob {job}: step 60/60" in watch.log.read_text()
    for seed in range(2):
        whole = train(compose("train", [*jobs("whole"), f"seed={seed}"]))
        killed = tmp_path / "killed" / whole.relative_to(tmp_path / "whole")
        mine, theirs = (read_json(folder / "metrics.json") for folder in (killed, whole))
        assert timeless(mine) == timeless(theirs)
