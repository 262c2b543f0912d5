"""What dashboards get of a run, read back from what was written."""

import io
import json
import logging
import re
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from dpn.common.files import read_json, read_rows, write_json, write_rows
from dpn.config.compose import compose
from dpn.inference.overlays import by_work
from dpn.reports.overlays import SIDE
from dpn.reports.page import read_results
from dpn.runs.folder import RunError
from dpn.runs.signals import Interrupted
from dpn.train import train
from dpn.training import dashboards
from dpn.training.dashboards import RouteHistograms, results, title_of
from dpn.training.loggers import Board, Title, WandB
from tests.app.conftest import tiny_run
from tests.app.test_train import AtStep, crash
from tests.app.test_train import run as run_with
from tests.app.wandb_files import read_parts
from tools import wandb_report


@pytest.mark.parametrize(
    ("overrides", "keep", "name"),
    [
        ([], 0.45, "tiny/dpe/keep 0.45/seed 0"),
        (["router=none", "seed=2"], None, "tiny/none/seed 2"),
        (["model=llava_1_5_tiny", "router=static"], 0.5, "llava_1_5_tiny/static/keep 0.5/seed 0"),
    ],
)
def test_names(overrides, keep, name):
    request = compose("train", overrides)
    assert title_of(request, "0123abcd", keep) == Title(name, "0123abcd", None)
    assert title_of(replace(request, sweep="grid"), "0123abcd", keep).group == "grid"


def test_a_folder_keeps_its_id_and_another_gets_another(tmp_path):
    first, again, other = (WandB(str(tmp_path / name))._kept_id("abcd") for name in "aab")
    assert first == again != other
    assert {first[:5], other[:5]} == {"abcd-"}


@pytest.fixture
def began(monkeypatch, tmp_path):
    """What `wandb.init` is asked for; no key, no settings and no environment of the machine."""
    import wandb

    for name in ("API_KEY", "MODE", "NAME", "RUN_GROUP", "PROJECT", "SILENT", "CONSOLE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    asked = {}

    def init(**arguments):
        asked.clear()
        asked.update(arguments)
        offline, settings = asked["mode"] == "offline", SimpleNamespace(wandb_dir="DIR")
        return SimpleNamespace(offline=offline, settings=settings, url="URL")

    monkeypatch.setattr(wandb, "init", init)

    def began(**arguments):
        WandB(str(tmp_path), **arguments).open(Title("a/b/seed 0", "abcd", "sweep"))
        return asked

    return began


@pytest.mark.slow
def test_offline_without_a_key_and_quiet(began, caplog):
    with caplog.at_level(logging.INFO, "dpn.training.loggers"):
        asked = began()
    wanted = {"mode": "offline", "project": "dpn", "name": "a/b/seed 0", "group": "sweep"}
    assert asked.items() >= {**wanted, "resume": "allow"}.items()
    assert asked["id"].startswith("abcd-")
    assert asked["settings"] == {"silent": "true", "console": "off"}
    assert caplog.messages == ["Weights & Biases is offline; to upload this run: wandb sync DIR"]


@pytest.mark.slow
def test_online_with_a_key_or_a_login(began, caplog, monkeypatch, tmp_path):
    with caplog.at_level(logging.INFO, "dpn.training.loggers"):
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        assert began()["mode"] == "online"
        monkeypatch.delenv("WANDB_API_KEY")
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
        assert began()["mode"] == "online"
    assert caplog.messages == ["Weights & Biases: URL"] * 2


def test_arguments_and_environment_come_first(began, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    asked = began(group="ours")
    assert (asked["name"], asked["mode"]) == ("mine", "offline")
    assert (asked["project"], asked["group"]) == ("theirs", "ours")
    assert asked["settings"]["console"] == "wrap"
    assert began(name="given", mode="disabled")["mode"] == "disabled"


def test_what_can_not_begin_says_what_helps(began, monkeypatch):
    import wandb

    def refuse(**arguments):
        raise wandb.errors.CommError("no route to host.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(RunError, match=r"no route to host\. With WANDB_MODE=offline"):
        began()


class Kept(Board):
    """Keeps what it is given."""

    name = version = None

    def __init__(self):
        self.histograms = {}

    def log_histogram(self, name, counts, step):
        self.histograms[name, step] = counts.tolist()

    def log_results(self, metrics, table, examples, step):
        raise NotImplementedError

    log_metrics = log_hyperparams = log_results


def test_histograms_count_each_familys_choices():
    def decided(layer, samples, experts, names):
        return SimpleNamespace(
            layer=layer, samples=samples, experts=torch.tensor(experts), names=names
        )

    pools = ("1x1", "1x2", "2x2")
    meta = [{"family": "fine"}, {"family": "coarse"}, {}, {"family": "fine"}]
    first = [decided(1, (0, 1, 2, 3), (2, 0, 1, 2), pools), decided(3, (0, 3), (0, 1), pools)]
    second = [decided(1, (0,), (0,), pools), decided(2, (0,), (0,), ())]
    board = Kept()
    trainer = SimpleNamespace(loggers=[board], sanity_checking=False, global_step=7)
    counter = RouteHistograms()
    for _ in range(2):  # each validation begins anew
        counter.on_validation_start(trainer, None)
        for decisions in (first, second):
            trace = {"trace": SimpleNamespace(decisions=decisions)}
            batch = SimpleNamespace(meta=meta)
            counter.on_validation_batch_end(trainer, None, trace, batch, 0)
        counter.on_validation_end(trainer, None)
    shown = {
        ("routes/1/all", 6): [0, 1, 0],
        ("routes/1/coarse", 6): [1, 0, 0],
        ("routes/1/fine", 6): [1, 0, 2],
        ("routes/3/fine", 6): [1, 1, 0],
    }
    assert board.histograms == shown
    trainer.sanity_checking, trainer.global_step = True, 0
    counter.on_validation_end(trainer, None)
    assert board.histograms == shown


def test_examples_go_from_the_least_work_to_the_most():
    work = [0.9, 0.1, 0.5, 0.3, 0.7]
    rows = {n: {"base_rows": 16, "visual_macs_ratio": share} for n, share in enumerate(work)}
    rows[9] = {"base_rows": 0, "visual_macs_ratio": 0.0}  # without an image
    assert by_work(rows, 3) == [1, 2, 0]
    assert by_work(rows, 1) == [1]
    assert by_work(rows, 12) == [1, 3, 2, 4, 0]
    assert by_work({}, 3) == []


def route_counts(rows):
    """Of each layer, family and option, the share of prompts; in a loop of its own."""
    counts, whole = Counter(), Counter()
    for row in rows:
        for layer, option in row["route"].items():
            counts[layer, row["family"], option] += 1
            whole[layer, row["family"]] += 1
    return {f"routes/{'/'.join(key)}": n / whole[key[:2]] for key, n in counts.items()}


@pytest.mark.slow
def test_tensorboard_shows_scalars_routes_results_and_answers(squares, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    further = ["logger=tensorboard", "trainer.log_every_n_steps=1"]
    folder = train(compose("train", [*tiny_run(squares, tmp_path), *further]))
    events = EventAccumulator(
        str(folder / "tensorboard"),
        dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0),
    )
    events.Reload()
    tags, metrics = events.Tags(), read_json(folder / "metrics.json")
    rows = read_rows(folder / "rows.jsonl")

    for name in ("loss/language", "lr", "time/step_ms", "router/kept/3"):
        assert [event.step for event in events.Scalars(name)][:6] == list(range(6))
    assert [event.step for event in events.Scalars("loss/budget")] == [2, 3, 4, 5]  # stage.dense
    losses = [event.value for event in events.Scalars("val/loss")]
    assert losses[-1] == pytest.approx(metrics["val/loss"])
    for name, value in {**metrics, **route_counts(rows)}.items():
        assert events.Scalars(name)[-1].value == pytest.approx(value)
    assert "_hparams_/session_start_info" in events.summary_metadata

    answered = Counter(row["family"] for row in rows if not row["turn"])
    for family, count in answered.items():
        shown = events.Histograms(f"routes/0/{family}")
        assert [(event.step, event.histogram_value.num) for event in shown] == [
            (2, count),
            (5, count),
        ]
    texts = {name for name in tags["tensors"] if name.startswith("examples/")}
    assert len(texts) == len(tags["images"]) == len(rows)
    answer = events.Tensors(f"examples/{len(rows) - 1}/text_summary")[0]
    (text,) = answer.tensor_proto.string_val
    most = max(rows, key=lambda row: row["visual_macs_ratio"])
    assert f"- visual MACs: {most['visual_macs_ratio']}" in text.decode()


class Watched(Kept):
    """Notes when it is opened and closed."""

    def __init__(self):
        self.seen = []

    def open(self, title):
        self.seen.append(title)

    def close(self, failed):
        self.seen.append(failed)


@pytest.mark.parametrize("error", [None, ValueError("bad"), Interrupted("SIGTERM")])
def test_boards_are_closed_however_a_run_ends(error):
    board = Watched()
    trainer = SimpleNamespace(loggers=[board, object()])
    title = Title("name", "abcd")
    with suppress(ValueError, Interrupted), dashboards.opened(trainer, title):
        if error:
            raise error
    assert board.seen == [title, error is not None]


@pytest.fixture(scope="module")
def offline(squares, tmp_path_factory):
    """Folders of two jobs of one process, written offline; the first one crashed and was resumed.

    Also what the jobs printed.
    """
    outputs = tmp_path_factory.mktemp("outputs")
    overrides = [*tiny_run(squares, outputs), "logger=wandb", "trainer.log_every_n_steps=1"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(printed), redirect_stdout(printed):
        patch.setenv("WANDB_MODE", "offline")
        for place in ("DATA", "CACHE"):  # in the home folder otherwise
            patch.setenv(f"WANDB_{place}_DIR", str(outputs))
        with pytest.raises(RuntimeError, match="crash"):
            run_with(overrides, AtStep(5, crash))
        first = run_with(overrides)
        second = run_with([*overrides, "router=none"])
    return first, second, printed.getvalue()


@pytest.mark.slow
def test_weights_and_biases_offline(offline):
    first, second, printed = offline
    crashed, resumed = read_parts(first)
    (other,) = read_parts(second)
    assert crashed.run["run_id"] == resumed.run["run_id"] != other.run["run_id"]
    assert resumed.run["run_id"].startswith(read_json(first / "status.json")["identity"])
    names = [part.run["display_name"] for part in (crashed, resumed, other)]
    assert names == ["tiny/dpe/keep 0.45/seed 0"] * 2 + ["tiny/none/seed 0"]
    assert [part.exit_code for part in (crashed, resumed, other)] == [1, 0, 0]
    assert resumed.config["router"]["kernels"] == [[1, 1], [1, 2], [2, 2]]
    assert other.config["router"]["name"] == "none"
    # After the crash in step 5 the checkpoint of step 4 goes on; steps are counted from 0.
    assert [row["_step"] for row in crashed.history] == [0, 1, 2, 3]
    assert [row["_step"] for row in resumed.history] == [4, 5, 6]
    steps = {"loss/language", "lr", "time/step_ms", "router/kept/3"}
    assert all(steps <= row.keys() for row in crashed.history + resumed.history[:-1])
    assert "wandb:" not in printed


@pytest.mark.slow
def test_results_on_weights_and_biases(offline):
    folder = offline[0]
    resumed = read_parts(folder)[1]
    metrics, rows = read_json(folder / "metrics.json"), read_rows(folder / "rows.jsonl")
    for name, value in {**metrics, **route_counts(rows)}.items():
        assert resumed.summary[name] == pytest.approx(value)
    assert resumed.history[1]["val/loss"] == pytest.approx(metrics["val/loss"])
    for family, count in Counter(row["family"] for row in rows if not row["turn"]).items():
        name = f"routes/0/{family}"
        assert sum(resumed.history[1][f"{name}.values"]) == count
        assert resumed.history[1][f"{name}.bins"] == [-0.5, 0.5, 1.5, 2.5]

    table = read_json(resumed.files / resumed.summary["examples.path"])
    shown = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    ordered = sorted(rows, key=lambda row: row["visual_macs_ratio"])
    pictures = resumed.summary["examples/pictures.filenames"]
    for line, picture, row in zip(shown, pictures, ordered, strict=True):
        assert Image.open(resumed.files / picture).width % SIDE == 0
        assert line["picture"] == "Image"
        assert line["answer"] == row["answer"]
        assert line["rows"] == " ".join(map(str, row["rows"]))
        assert line["visual MACs"] == row["visual_macs_ratio"]


def keys_of(value, key):
    """Everything that stands under a key, anywhere in JSON."""
    if isinstance(value, dict):
        found = [value[key]] if key in value else []
        return found + [x for inner in value.values() for x in keys_of(inner, key)]
    return [x for inner in value for x in keys_of(inner, key)] if isinstance(value, list) else []


@pytest.mark.slow
def test_the_dashboard_shows_what_is_logged(offline):
    pytest.importorskip("wandb_workspaces", reason="needs the extra wandb-reports")
    resumed = read_parts(offline[0])[1]
    metrics, rows = read_results(offline[0])
    sent = wandb_report.dashboard(list(results(metrics, rows)), "team", "dpn")._to_model()
    shown = json.loads(sent.model_dump_json(by_alias=True))
    axes = [axis for key in ("xAxis", "yAxis") for axis in keys_of(shown, key)]
    asked = {name for names in keys_of(shown, "metrics") for name in names}
    asked |= {axis.removeprefix("summary:") for axis in axes if axis}
    logged = {name for row in resumed.history for name in row} | resumed.summary.keys()
    assert asked <= logged
    routes = set(route_counts(rows))
    assert asked >= {"val/accuracy/plain", "cost/visual_macs_ratio", "router/kept/3", "val/loss"}
    assert asked >= {"trainer/global_step", "time/step_ms", *routes}
    (losses,) = filter(None, keys_of(shown, "metricRegex"))
    assert {n for n in logged if re.search(losses, n)} == {"loss/language", "loss/budget"}


def test_a_dashboard_needs_a_package_and_a_key(tmp_path, monkeypatch):
    write_json(tmp_path / "metrics.json", {"val/accuracy": 1.0})
    write_rows(tmp_path / "rows.jsonl", [])
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(RunError, match=r"pip install 'dpn\[wandb-reports\]'"):
        wandb_report.wandb_report(str(tmp_path), "team")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", ModuleType("wandb_workspaces"))
    monkeypatch.setattr(wandb_report, "has_key", lambda: False)
    with pytest.raises(RunError, match="log in first: wandb login"):
        wandb_report.wandb_report(str(tmp_path), "team")
