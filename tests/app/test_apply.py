"""`stage=apply`: evaluate methods without training on the weights of an uncompressed run."""

import sys
from dataclasses import replace

import pytest

from dpn import inference
from dpn.common.files import read_json, read_rows
from dpn.config import build
from dpn.config.apply import base_overrides, base_run
from dpn.config.compose import compose
from dpn.inference import evaluation
from dpn.runs.request import ConfigError
from dpn.train import main, train
from tests.app.conftest import timeless, tiny_run, without_times


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("apply")


@pytest.fixture(scope="module")
def base(squares, outputs):
    """Folder of a run without compression."""
    return train(compose("train", [*tiny_run(squares, outputs), "router=none", "seed=3"]))


@pytest.fixture
def tiny(squares, outputs):
    return [*tiny_run(squares, outputs), "seed=3"]


def applied(tiny, *overrides):
    return train(compose("train", [*tiny, "stage=apply", *overrides]))


@pytest.mark.slow
def test_a_router_is_applied_to_the_weights_of_its_base(base, tiny):
    folder = applied(tiny, "router=fastv", "router.keep=0.7")
    assert read_json(folder / "status.json")["applied_to"] == str(base)
    assert not (folder / "model").exists()
    model, processor = inference.load(base, "cpu")
    config = compose("train", [*tiny, "router=fastv", "router.keep=0.7"]).config
    model.router = build.model(config, processor).router
    source = build.data_module(config.data)
    source.processor = processor
    metrics, rows = evaluation.evaluate_held_out(model, processor, source, 4)
    found = read_json(folder / "metrics.json")
    assert timeless(found) == pytest.approx(timeless(metrics))
    assert [row["answer"] for row in read_rows(folder / "rows.jsonl")] == [
        row["answer"] for row in rows
    ]
    assert 0.6 < metrics["cost/visual_macs_ratio"] < 0.8


@pytest.mark.slow
def test_router_none_repeats_the_results_of_the_base(base, tiny):
    folder = applied(tiny, "router=none")
    before, after = (without_times(read_rows(place / "rows.jsonl")) for place in (base, folder))
    assert after == before
    before, after = (timeless(read_json(place / "metrics.json")) for place in (base, folder))
    assert after == before


def test_overrides_of_the_base(squares, tmp_path):
    common = tiny_run(squares, tmp_path)

    def base_of(*overrides):
        return base_overrides(compose("train", [*common, "stage=apply", *overrides]))

    method = ["router=vtw", "router.k=2", "loss.reduction=reference"]
    assert base_of(*method, "projector=visionzip", "seed=1") == ["router=none", *common, "seed=1"]
    assert base_of("projector=token_packer", "projector.keep=0.25", "projector.scale=2") == [
        *("router=none", *common),
        *("projector=token_packer", "projector.scale=2"),
    ]
    assert base_run(compose("train", [*common, "stage=apply", "router=vtw"])) is None


def test_a_missing_base_is_refused_with_its_command(tiny):
    with pytest.raises(ConfigError) as error:
        applied(tiny, "router=fastv", "model.text.initializer_range=0.1")
    (sentence,) = error.value.problems
    assert "create it: python -m dpn.train router=none data=llava_json" in sentence
    assert "model.text.initializer_range=0.1" in sentence


@pytest.mark.slow
def test_a_router_with_weights_of_its_own_is_refused(base, tiny):
    with pytest.raises(ConfigError, match="`router=dpe` has weights of its own"):
        applied(tiny, "router=dpe")
    with pytest.raises(ValueError, match=r"lacks required weights, router: router.gates"):
        applied(tiny, "router=dpe", f"init.model={base}")


@pytest.mark.slow
def test_gates_are_applied_at_another_share(tiny):
    trained = train(compose("train", [*tiny, "router=dpe", "router.keep=0.8"]))
    folder = applied(tiny, "router=dpe", "router.keep=0.6", f"init.model={trained}")
    shares = [
        read_json(place / "metrics.json")["cost/visual_macs_ratio"] for place in (trained, folder)
    ]
    assert shares[1] < shares[0]


@pytest.mark.slow
def test_a_projector_is_calibrated_before_and_after(base, tiny, caplog):
    """If its number of rows depends on the image, as that of `dfmr` does."""
    keep = ("projector=dfmr", "projector.kernels=[2]", "projector.keep=0.6", "router=none")
    with caplog.at_level("INFO", logger="dpn.training.calibration"):
        applied(tiny, *keep)
    assert caplog.text.count("projector.keep=0.6: price") == 2


def test_a_share_out_of_reach_is_an_outcome_of_a_sweep(tiny):
    request = compose("train", [*tiny, "router=dpe", "router.keep=0.01"])
    with pytest.raises(ConfigError, match="cannot be reached"):
        train(request)
    folder = train(replace(request, in_sweep=True))
    status = read_json(folder / "status.json")
    assert status["status"] == "unreachable"
    assert "router.keep=0.01 cannot be reached" in status["error"]


def test_other_mistakes_in_a_sweep_are_errors(tiny):
    request = compose("train", [*tiny, "router=dpe", "router.keep=0.01", "data.batch_size=0"])
    with pytest.raises(ConfigError):
        train(replace(request, in_sweep=True))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["router", "projector"])
def test_a_sweep_over_all_methods(part, base, tiny, monkeypatch, capsys):
    """The same overrides work for every method, or its error says what it lacks."""
    jobs = ["-m", "stage=apply", f"{part}=glob(*)", f"{part}.keep=0.5"]
    jobs += ["router=none"] if part == "projector" else []
    monkeypatch.setattr(sys, "argv", ["dpn-train", *jobs, *tiny])
    with pytest.raises(SystemExit):
        main()
    errors = capsys.readouterr().err
    reasons = ("has weights of its own", "needs a finished run")
    failed = errors.count("The configuration has")
    assert 0 < failed == sum(map(errors.count, reasons)) < 6
