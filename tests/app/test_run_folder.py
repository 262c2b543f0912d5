import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from omegaconf import OmegaConf, open_dict

from dpn.common.files import atomic_path, read_json, write_json
from dpn.config.compose import compose, compose_jobs
from dpn.data import resolve
from dpn.runs import folder as folder_module
from dpn.runs.commit import commit
from dpn.runs.folder import FolderLost, RunFolder, RunIsLive, is_live
from dpn.runs.path import config_hash, holds_run, run_path, slug
from dpn.runs.saved import read_settings
from dpn.runs.signals import Interrupted
from dpn.runs.typed import as_typed


def name_of(*overrides: str) -> str:
    request = compose("train", overrides)
    return slug(request.overrides, request.config)


def hash_of(*overrides: str) -> str:
    return config_hash(compose("train", overrides).config)


def test_slug_without_overrides_is_default_and_hash():
    assert re.fullmatch(r"default-[0-9a-f]{8}", name_of())


def test_slug_is_readable_bounded_and_safe():
    long = name_of("model.text.hidden_size=192", *(f"+data.note{i}='a b/c,d'" for i in range(20)))
    assert len(long.encode()) <= 100
    assert re.fullmatch(r"[A-Za-z0-9._-]+", long)
    assert name_of("router=static", "router.keep=0.6").startswith("router-static_router.keep-0.6-")


def test_order_of_overrides_does_not_matter():
    assert name_of("seed=1", "optim.lr=0.1") == name_of("optim.lr=0.1", "seed=1")


@pytest.mark.parametrize(
    "override",
    [
        *("paths.output_root=/x", "paths.data_root=/x", "logger=none", "data.num_workers=3"),
        *("seed=0", "model.attention=segments", "model.compile_layers=true"),
    ],
)
def test_hash_ignores_what_computes_nothing(override):
    assert hash_of(override) == hash_of()


@pytest.mark.parametrize("override", ["seed=1", "router.keep=0.6", "data.batch_size=7"])
def test_hash_sees_what_computes(override):
    assert hash_of(override) != hash_of()


def test_hash_does_not_see_an_added_setting_that_changes_nothing():
    config = compose("train", ["router=yopo"]).config
    without = config.copy()
    with open_dict(without):
        del without.router["reference"]
    assert config_hash(without) == config_hash(config)
    assert hash_of("router=yopo", "router.reference=true") != config_hash(config)


def moved(node, module):
    """The node with every class of dpn in another module."""
    if isinstance(node, dict):
        return {k: moved(v, module) for k, v in node.items()}
    if isinstance(node, str) and node.startswith("dpn.") and node.rpartition(".")[2].istitle():
        return f"{module}.{node.rpartition('.')[2]}"
    return node


def test_hash_does_not_see_where_a_class_lives():
    config = compose("train", ["trainer=fsdp2"]).config
    plain = OmegaConf.to_container(config, resolve=False)
    elsewhere = moved(plain, "dpn.rooms.elsewhere")
    assert elsewhere != plain
    assert config_hash(OmegaConf.create(elsewhere)) == config_hash(config)
    plain["optim"]["_target_"] = "torch.optim.Adagrad"
    assert config_hash(OmegaConf.create(plain)) != config_hash(config)


def test_same_run_with_another_logger_finds_its_folder():
    assert name_of("seed=1", "logger=none", "paths.output_root=x") == name_of("seed=1")


@pytest.mark.parametrize(
    ("part", "without_effect"),
    [("router=none", "router.keep=0.6"), ("projector=dense_connector", "projector.keep=0.5")],
)
def test_what_is_ignored_names_no_other_run(part, without_effect):
    assert name_of(part, without_effect) == name_of(part)


def test_folder_is_below_the_experiment():
    request = compose("train", ["experiment=paper", "paths.output_root=there"])
    path = run_path(request)
    assert path.parts[:2] == ("there", "paper")
    assert path.name.startswith("default-")


def held(path, action):
    """Does something while holding a folder."""
    with RunFolder(path) as run:
        action(run)


def test_status_tells_how_a_run_ended(tmp_path):
    with RunFolder(tmp_path) as run:
        assert run.status["status"] == "running"
        assert run.status["pid"] == os.getpid()
        assert abs(run.status["heartbeat"] - time.time()) < 5
    assert RunFolder(tmp_path).finished

    with pytest.raises(ZeroDivisionError):
        held(tmp_path, lambda run: 1 / 0)
    assert read_json(tmp_path / "status.json")["status"] == "failed"
    assert read_json(tmp_path / "status.json")["error"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_interrupt(tmp_path, signum):
    with pytest.raises(Interrupted):
        held(tmp_path, lambda run: os.kill(os.getpid(), signum))
    assert read_json(tmp_path / "status.json")["status"] == "interrupted"


def test_patient_signal_waits_and_a_second_one_does_not(tmp_path):
    def send_two(run):
        run.stop.patient = True
        os.kill(os.getpid(), signal.SIGINT)
        waited.append(run.stop.signal)
        os.kill(os.getpid(), signal.SIGINT)
        waited.append("never")

    waited = []
    with pytest.raises(Interrupted):
        held(tmp_path, send_two)
    assert waited == ["SIGINT"]


def hold(path, ready):
    with RunFolder(path):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A live process that runs in the folder."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def test_a_live_run_is_not_written_by_a_second_process(tmp_path, holder):
    before = (tmp_path / "status.json").read_bytes()
    with pytest.raises(RunIsLive, match=f"process {holder.pid}"), RunFolder(tmp_path):
        pass
    assert (tmp_path / "status.json").read_bytes() == before


def test_a_killed_run_is_taken_over_at_once(tmp_path, holder):
    holder.kill()
    holder.join()
    assert read_json(tmp_path / "status.json")["status"] == "running"
    with RunFolder(tmp_path) as run:
        assert run.status["pid"] == os.getpid()
        assert run.status["attempt"] == 2
        assert run.status["commit"] == commit()


@pytest.mark.parametrize(("age", "live"), [(1, True), (1000, False)])
def test_heartbeat_speaks_for_another_machine(tmp_path, age, live):
    beat = {"status": "running", "host": "elsewhere", "pid": 1, "heartbeat": time.time() - age}
    write_json(tmp_path / "status.json", beat)
    if live:
        with pytest.raises(RunIsLive, match="elsewhere"):
            RunFolder(tmp_path).__enter__()
    else:
        with RunFolder(tmp_path) as run:
            assert run.status["host"] != "elsewhere"


def test_a_folder_of_another_config_is_refused(tmp_path):
    with RunFolder(tmp_path, identity="aaaaaaaa"):
        pass
    with pytest.raises(ValueError, match="other settings"), RunFolder(tmp_path, identity="bbbb"):
        pass


def test_reader_writes_nothing(tmp_path):
    with RunFolder(tmp_path, writer=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": float("nan"), "b": 1.5})
    assert read_json(path) == {"a": None, "b": 1.5}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(FileNotFoundError), atomic_path(path) as temporary:
        temporary.with_suffix("").read_text()
    assert read_json(path) == {"a": None, "b": 1.5}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def saved_by_an_earlier_version(path, request):
    """A finished run whose config.yaml has its values and classes where they were before."""
    config = OmegaConf.to_container(request.config.copy(), resolve=True)
    recipe = config.pop("recipe")
    config["model"] |= recipe
    config["loss"]["keep"] = recipe["keep"]
    config["callbacks"]["checkpoint"]["_target_"] = "dpn.resume.Checkpoints"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    write_json(path / "status.json", {"status": "finished", "identity": path.name[-8:]})


def test_the_default_metric_is_no_part_of_the_identity(tmp_path):
    """Runs from before `data.metric` are found again; with another metric it is another run."""
    for sources, default in (([], "digits"), (["data=llava_json"], "normalised")):
        config = compose("train", sources).config
        assert config.data.metric == default
        assert resolve(config.data.name).metric == default
        before = config.copy()
        del before.data.metric
        assert config_hash(before) == config_hash(config)
        other = {"digits": "normalised", "normalised": "digits"}[default]
        assert hash_of(*sources, f"data.metric={other}") != config_hash(config)
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(before, resolve=True))
        assert holds_run(tmp_path, config)
        assert not holds_run(tmp_path, compose("train", [*sources, "data.metric=anls"]).config)


def test_runs_of_earlier_versions_are_recognised(tmp_path):
    overrides = [f"paths.output_root={tmp_path}", "seed=3", "loss=auto"]
    request = compose("train", overrides)
    now = run_path(request)
    before = now.with_name(f"{now.name[:-8]}0123abcd")
    saved_by_an_earlier_version(before, request)
    assert run_path(compose("train", overrides)) == before
    folder = RunFolder.of(compose("train", overrides))
    assert folder.finished
    with folder:  # accepts the folder as its own, under the hash that it has
        assert folder.status["identity"] == "0123abcd"
    assert run_path(compose("train", [*overrides, "optim.lr=0.5"])).name[-8:] != "0123abcd"
    (before / "config.yaml").write_text("{")
    assert run_path(compose("train", overrides)) == now


def test_settings_of_data_that_were_added_later_are_no_part_of_an_earlier_run(tmp_path):
    own = ["data=llava_json", "data.train_file=x.json", "data.image_root=."]
    request = compose("train", [*own, f"paths.output_root={tmp_path}"])
    now = run_path(request)
    before = now.with_name(f"{now.name[:-8]}0123abcd")
    saved_by_an_earlier_version(before, request)
    config = OmegaConf.load(before / "config.yaml")
    for key in [key for key in config.data if key.startswith("image_m") or key == "metric"]:
        del config.data[key]
    OmegaConf.save(config, before / "config.yaml")
    assert run_path(compose("train", [*own, f"paths.output_root={tmp_path}"])) == before


def test_what_killed_attempts_left_is_removed_by_the_next(tmp_path):
    for name in (".model.99.tmp", "checkpoints/.step-0000001.ckpt.98-0f.tmp"):
        (tmp_path / name).mkdir(parents=True)
    with RunFolder(tmp_path):
        assert list(tmp_path.rglob("*.tmp")) == []


HERE = socket.gethostname()


@pytest.mark.parametrize(
    ("host", "ahead", "written", "live"),
    [
        ("elsewhere", 1e6, -1000, False),  # its clock is ahead, and it is dead
        ("elsewhere", 1e6, 1000, False),
        ("elsewhere", 1e6, 0, True),  # its clock is ahead, and it writes
        ("elsewhere", 0, -1000, False),  # a clock of this machine that was set back
        (HERE, 0, 0, False),  # the lock was free, whatever process has the number now
        (HERE, 1e6, 0, False),
    ],
)
def test_a_heartbeat_counts_with_the_time_of_its_file(tmp_path, host, ahead, written, live):
    now = time.time()
    beat = {"status": "running", "host": host, "pid": 1, "heartbeat": now + ahead, "started": now}
    write_json(tmp_path / "status.json", beat)
    os.utime(tmp_path / "status.json", (now + written, now + written))
    if live:
        with pytest.raises(RunIsLive, match="elsewhere"), RunFolder(tmp_path):
            pass
    else:
        with RunFolder(tmp_path) as run:
            assert run.status["host"] == HERE


def test_a_process_that_got_the_number_of_a_dead_one_is_not_the_run(tmp_path):
    now, process = time.time(), subprocess.Popen(["sleep", "60"])
    try:
        status = {"status": "running", "host": HERE, "pid": process.pid, "heartbeat": now}
        assert is_live(tmp_path, {**status, "started": now})
        assert not is_live(tmp_path, {**status, "started": now - 30})
    finally:
        process.kill()
        process.wait()
    assert not is_live(tmp_path, {**status, "started": now})


def removed(run):
    """Remove the folder of a run, as a user may, and write to it, as a logger may."""
    shutil.rmtree(run.path)
    with pytest.raises(FolderLost):
        run.update(step=1)
    assert not run.path.exists()
    (run.path / "csv").mkdir(parents=True)


def test_a_run_whose_folder_is_removed_says_so_and_does_not_make_it_again(tmp_path):
    with pytest.raises(FolderLost, match="was removed or replaced"):
        held(tmp_path / "run", removed)
    assert not (tmp_path / "run" / "status.json").exists()


def test_the_heartbeat_stops_a_run_whose_folder_is_removed(tmp_path, monkeypatch):
    def wait(run):
        run.stop.patient = True
        shutil.rmtree(run.path)
        time.sleep(20)

    monkeypatch.setattr(folder_module, "HEARTBEAT_S", 0.02)
    since = time.perf_counter()
    with pytest.raises(FolderLost):
        held(tmp_path / "run", wait)
    assert time.perf_counter() - since < 10


SECRET = "s3cr3t-value-of-a-token"


def secret_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DPN_TEST_TOKEN", SECRET)
    monkeypatch.setenv("DPN_TEST_SEED", "7")
    overrides = [
        f"paths.output_root={tmp_path}",
        "logger=wandb",
        "logger.wandb.project=${oc.env:DPN_TEST_TOKEN}",
        "logger.wandb.group=x-${logger.wandb.project}",
        "+logger.wandb.all={a: '${oc.env:DPN_TEST_TOKEN}'}",
        "seed='${oc.decode:${oc.env:DPN_TEST_SEED}}'",
    ]
    return compose("train", overrides)


def test_text_from_the_environment_is_written_as_it_was_typed(tmp_path, monkeypatch):
    request = secret_run(tmp_path, monkeypatch)
    assert request.config.logger.wandb.group == f"x-{SECRET}"  # what runs has the value
    with RunFolder.of(request) as run:
        run.update(overrides=list(request.overrides))
    texts = {path.name: path.read_text() for path in run.path.iterdir()}
    assert not [name for name, text in texts.items() if SECRET in name + text]
    assert SECRET not in str(run.path) + " ".join(request.command)
    saved = read_settings(run.path)
    plain = OmegaConf.to_container(saved)
    assert plain["logger"]["wandb"]["group"] == "x-${logger.wandb.project}"
    assert plain["logger"]["wandb"]["project"] == "${oc.env:DPN_TEST_TOKEN}"
    assert (plain["seed"], plain["data"]["seed"]) == (7, 7)  # numbers are no secrets
    assert saved.logger.wandb.all.a == SECRET
    assert RunFolder.of(secret_run(tmp_path, monkeypatch)).finished
    monkeypatch.setenv("DPN_TEST_SEED", "8")
    assert not RunFolder.of(compose("train", request.overrides)).path.exists()


def test_settings_without_the_environment_are_written_resolved():
    config = compose("train", ["router=dpe", "loss=policy", "trainer=fsdp2"]).config
    assert as_typed(config) == OmegaConf.to_container(config, resolve=True)


def test_jobs_of_a_sweep_keep_what_was_typed(tmp_path, monkeypatch):
    monkeypatch.setenv("DPN_TEST_TOKEN", SECRET)
    command, jobs = compose_jobs("train", ["seed=0,1", "paths.data_root=${oc.env:DPN_TEST_TOKEN}"])
    assert all(job.config.paths.data_root == SECRET for job in jobs)
    assert SECRET not in str([command.overrides, *(job.overrides for job in jobs)])
