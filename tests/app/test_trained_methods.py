"""Methods with losses of their own learn in runs from the command line."""

from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from dpn.common.files import read_json
from dpn.config.compose import compose
from dpn.losses.depth import DepthLoss
from dpn.losses.exit import ExitLoss
from dpn.train import train

pytestmark = pytest.mark.slow


def noted(loss, monkeypatch):
    """The traces and values of a loss, step by step."""
    seen, forward = [], loss.forward

    def note(self, trace):
        value = forward(self, trace)
        seen.append((self, trace, float(value.detach())))
        return value

    monkeypatch.setattr(loss, "forward", note)
    return seen


def test_exit_gates_learn_in_a_finished_model(tiny, monkeypatch):
    seen = noted(ExitLoss, monkeypatch)
    common = [*tiny, "optim=adamw"]
    # A model of few steps answers partly without its image, one of many steps never.
    base = train(compose("train", [*common, "router=none", "trainer.max_steps=40"]))
    gates = ["router=dyvte", "router.hidden=64", "stage=gates", f"init.model={base}"]
    folder = train(compose("train", [*common, *gates, "trainer.max_steps=100"]))
    labels = [loss.labels(trace) for loss, trace, _ in seen]
    assert {int(label) for found in labels for label in found.values()} == {0, 1}
    values = [value for *_, value in seen]
    assert len(values) == 100
    assert fmean(values[-30:]) < 0.9 * fmean(values[:30])
    before, after = (load_file(f / "model" / "model.safetensors") for f in (base, folder))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert 0.25 <= read_json(folder / "metrics.json")["cost/visual_macs_ratio"] <= 1


@pytest.mark.parametrize("keep", ["null", "0.6"])
def test_rows_that_pass_layers_by_are_learned(keep, tiny, monkeypatch):
    seen = noted(DepthLoss, monkeypatch)
    options = ["router=depth_routing", f"router.keep={keep}", "stage.dense=0"]
    options += ["optim=adamw", "optim.gate_lr=0.05", "trainer.max_steps=100"]
    folder = train(compose("train", [*tiny, *options]))
    values = [value for *_, value in seen]
    assert len(values) == 100
    assert fmean(values[-10:]) < 0.5 * fmean(values[:10])
    metrics = read_json(folder / "metrics.json")
    if keep == "null":  # the threshold lets fewer rows pass than in training, where half of them do
        assert 0.5 < metrics["cost/visual_macs_ratio"] <= 1
    else:
        assert metrics["cost/visual_macs_ratio"] == pytest.approx(0.6, abs=0.05)
        assert metrics["router/kept/1"] < metrics["router/kept/3"] == 1
    assert (folder / "report.md").exists()
