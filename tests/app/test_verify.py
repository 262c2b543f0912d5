"""`dpn.verify`: what it compares, and that it reports a model that computes something else."""

import json
import sys

import numpy as np
import pytest
import torch

from dpn import verify as door
from dpn.compressed import compress
from dpn.config.compose import compose
from dpn.measure import verification
from dpn.measure.agreement import Outputs, agreement, selection
from dpn.measure.hidden_columns import watched
from dpn.measure.verification import verify_model
from dpn.measure.verification_report import figures, table, verdict
from dpn.routers.fastv import FastVRouter
from tests.core.conftest import few
from tests.vlm_batches import Picture, batch
from tests.vlm_folders import save
from tests.vlms import build, language, model

FASTV = {"name": "fastv", "k": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of three tiny models with their processors."""
    root = tmp_path_factory.mktemp("models")
    for name in ("llava", "llava_next", "idefics3"):
        save(root / name, name)
    return root


@pytest.fixture
def question():
    """One prompt with an image for the shared tiny model of a name."""

    def ask(name):
        return batch(model(name), [[1, 5, Picture(100, 60), 7, 8, 9]])

    return ask


def overrides(folder, *more):
    return ["model=hf", f"model.id={folder}", "router.k=1", "new_tokens=4", "pairs=0", *more]


@pytest.mark.parametrize("name", ["llava", "llava_next", "idefics3"])
def test_a_checkpoint_agrees(folders, name):
    found = door.verify(compose("verify", overrides(folders / name)))
    assert found.none.difference <= 1e-5
    assert found.method.difference <= 1e-5 < 1e-2 < found.method.effect
    assert (found.none.tokens, found.method.tokens) == (4, 4)
    assert found.selection.same == found.selection.kept > 0
    assert found.rows[1] == found.selection.kept < found.rows[0]
    assert found.share < 0.75 < found.flops + 0.3
    assert found.holds


@pytest.mark.parametrize("name", few(["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"]))
@pytest.mark.parametrize("router", [FASTV, {"name": "vtw", "k": 2}], ids=lambda r: r["name"])
def test_other_families_agree(question, name, router):
    found = verify_model(model(name), question(name), router, new_tokens=3, pairs=0)
    assert found.holds
    assert found.method.difference <= 1e-5 < 1e-3 < found.method.effect
    assert (found.selection is not None) == (router is FASTV)


def test_rows_may_be_dropped_several_times(question):
    router = {"name": "pyramid_drop", "layers": [1, 2]}
    found = verify_model(model("qwen3_vl"), question("qwen3_vl"), router, None, 3, 0)
    assert found.rows[0] > found.rows[1] > found.rows[2]
    assert found.method.difference <= 1e-5 < 1e-3 < found.method.effect


@pytest.mark.parametrize(
    ("router", "keep", "reason"),
    [
        ({"name": "sparsevlm"}, None, "merges, pools or reorders rows"),
        ({"name": "static", "layers": [0]}, None, "merges, pools or reorders rows"),
        ({"name": "sparse_ffn"}, 0.7, "changes what layers compute for visual rows"),
        ({"name": "vtw", "k": 1, "positions": "renumber"}, None, "renumbered rows"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_methods_without_a_reference_are_named(question, router, keep, reason):
    found = verify_model(model("internvl"), question("internvl"), router, keep, 2, 0)
    assert found.holds
    assert found.method is None
    assert reason in found.reason
    assert "only router=none was checked" in verdict(found)
    assert len(table(found).body) == 1


def test_the_router_is_put_back(question):
    fast = compress(model("internvl"), FASTV)
    router = fast.dpn.router
    with torch.inference_mode(), watched(fast.dpn) as watcher:
        fast(**question("internvl"))
    assert list(watcher.spans) == [1]
    assert not watcher.changed
    assert not watcher.planned
    assert fast.dpn.router is router


def test_the_stock_model_stays_as_it_was(question):
    vlm, inputs = model("qwen2_5_vl"), question("qwen2_5_vl")
    with torch.inference_mode():
        before = vlm(**inputs).logits
        verify_model(vlm, inputs, FASTV, 0.5, 2, 0)
        assert torch.equal(vlm(**inputs).logits, before)
    assert not any(layer._forward_pre_hooks for layer in language(vlm).layers)
    assert not hasattr(vlm, "dpn")


def test_a_layer_that_does_more_is_reported(question):
    vlm = build("idefics3")
    language(vlm).layers[1].register_forward_hook(lambda layer, args, out: 1.1 * out)
    found = verify_model(vlm, question("idefics3"), FASTV, None, 4, 0)
    assert not found.none.holds
    assert not found.holds
    assert "router=none DIFFERS from the stock model" in verdict(found)


def test_a_router_that_changes_text_is_reported(question, monkeypatch):
    whole = FastVRouter.between

    def between(self, layer, tokens, context):
        out = whole(self, layer, tokens, context)
        text = torch.from_numpy(~out.is_visual)[:, None]
        return out if out is tokens else out.with_hidden(out.hidden * torch.where(text, 1.1, 1))

    monkeypatch.setattr(FastVRouter, "between", between)
    found = verify_model(model("llava"), question("llava"), FASTV, None, 4, 0)
    assert found.none.holds
    assert not found.method.holds
    assert "fastv k=1 DIFFERS from the stock model with the same columns hidden" in verdict(found)


def test_a_wrong_choice_of_columns_is_reported(question, monkeypatch):
    whole = FastVRouter.scores
    monkeypatch.setattr(FastVRouter, "scores", lambda *args: [-x for x in whole(*args)])
    found = verify_model(model("llava"), question("llava"), FASTV, None, 2, 0)
    assert found.none.holds
    assert found.method.holds  # the mask follows the choice
    assert not found.selection.holds
    assert "does NOT keep the columns" in verdict(found)


def test_the_choice_is_compared_by_image():
    visual = np.array([0, 1, 1, 1, 0, 1, 1, 0], bool)
    attention = torch.tensor([9.0, 0.3, 0.1, 0.2, 9.0, 0.04, 0.05, 9.0])
    kept = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
    found = selection(attention, kept, visual, 1e-4)
    assert (found.same, found.kept, found.holds) == (3, 3, True)
    assert found.excess == pytest.approx((0.04 - 0.05) / 0.05)
    kept[[5, 6]] = [True, False]
    found = selection(attention, kept, visual, 1e-4)
    assert (found.same, found.holds) == (2, False)
    assert found.excess == pytest.approx(0.25)
    assert selection(attention, kept, visual, 0.3).holds  # rounding of a coarse dtype


def outputs(tokens, shift=0.0):
    steps = torch.zeros(1, len(tokens), 4)
    return Outputs(torch.ones(1, 3, 4) + shift, torch.tensor([tokens]), steps + shift)


def test_a_tie_of_tokens_is_rounding_and_other_logits_are_not():
    every = np.ones((1, 3), bool)
    same = agreement(outputs([1, 2]), outputs([1, 2]), every, 1e-4, "a", "b")
    assert (same.difference, same.tokens, same.holds) == (0.0, 2, True)
    tie = agreement(outputs([1, 2], 1e-5), outputs([1, 3]), every, 1e-4, "a", "b")
    assert (tie.tokens, tie.generated, tie.holds) == (1, 2, True)
    assert not agreement(outputs([1, 2], 1e-3), outputs([1, 2]), every, 1e-4, "a", "b").holds
    assert not agreement(outputs([1], np.nan), outputs([1]), every, 1e-4, "a", "b").holds


def test_only_given_columns_are_compared():
    other = Outputs(torch.tensor([[[5.0], [1.0]]]), torch.tensor([[0]]), torch.zeros(1, 1, 1))
    one = Outputs(torch.ones(1, 2, 1), torch.tensor([[0]]), torch.zeros(1, 1, 1))
    assert not agreement(other, one, np.array([[1, 1]], bool), 1e-4, "a", "b").holds
    assert agreement(other, one, np.array([[0, 1]], bool), 1e-4, "a", "b").holds


def test_the_command_prints_a_sentence_and_a_line_of_json(folders, monkeypatch, capsys):
    command = overrides(folders / "idefics3", "pairs=2", "model.dtype=bfloat16")
    monkeypatch.setattr(sys, "argv", ["dpn.verify", *command])
    door.main()
    *lines, last = capsys.readouterr().out.splitlines()
    shown = " ".join(line.strip() for line in lines)
    assert "router=none equals the stock model (largest difference" in shown
    assert "prefill takes" in shown
    found = json.loads(last)
    assert found["agrees"] is True
    assert found["method"] == "fastv k=1 keep=0.5"
    assert found["time/pairs"] == 2
    assert found["none/tokens"] == found["none/generated"] == 4
    assert found["verdict"].startswith("router=none equals")


def test_the_command_fails_where_something_differs(folders, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dpn.verify", *overrides(folders / "llava")])
    monkeypatch.setitem(verification.TOLERANCE, "float32", -1.0)  # nothing is close enough
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["agrees"] is False
    assert "computes something else in dpn.compress than by itself" in err
    assert "Traceback" not in err


def test_numbers_that_are_not_finite_are_null(question):
    vlm = build("llava")
    with torch.no_grad():
        vlm.lm_head.weight.fill_(torch.nan)
    found = verify_model(vlm, question("llava"), FASTV, None, 2, 0)
    assert not found.holds
    assert figures(found)["none/difference"] is None
    assert "the logits are not finite" in verdict(found)
