"""`dpn.bench`: contenders compute the same, figures agree with the formulas, and its files."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity

from dpn import DPNConfig
from dpn.bench import Load, bench, measure
from dpn.config.compose import compose
from dpn.measure import profiling, report
from dpn.measure.contenders import contenders, set_training, train_step, weights
from dpn.measure.dry_run import make_batch
from dpn.runs.request import ConfigError

SMALL = (
    "model.text.hidden_size=16",
    "model.text.intermediate_size=32",
    "model.text.num_hidden_layers=4",
    "model.text.num_attention_heads=2",
    "model.vision.width=16",
    "model.vision.depth=1",
    "model.vision.heads=2",
    "text_columns=8",
    "batch_size=2",
    "new_tokens=1",
    "pairs=2",
)
TEXT = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
TOWER = {"name": "vit", "image_size": 32, "width": 16, "depth": 1, "heads": 2}


def measured(*overrides):
    return bench(compose("bench", [*SMALL, *overrides]))


def small(router, projector=None):
    return DPNConfig(
        text_config=TEXT,
        vision_config=TOWER,
        projector_config=projector,
        router_config=router,
        image_token_id=62,
        router_token_id=63,
    )


def prompt(runner, batch, tokens=3):
    """Logits of the prompt's last column and of some new tokens."""
    set_training(runner, False)
    with torch.inference_mode():
        logits, cache = runner.prompt(batch)
        every = [logits]
        for _ in range(tokens):
            every.append(runner.token(batch["input_ids"][:, -1:], cache))
    return torch.cat(every, 1)


def test_hugging_face_computes_what_no_compression_computes():
    visionzip = {"name": "visionzip", "keep": 0.5}
    runners = contenders(small({"name": "static"}, visionzip), Load(), "cpu")
    assert runners["ours"].model.vision.needs.attention  # which no compression does not compute
    assert runners["none"].model.vision.needs.attention is None
    batch = make_batch(runners["none"].model, 2, 8)
    expected = prompt(runners["hf"], batch)
    torch.testing.assert_close(prompt(runners["none"], batch), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(prompt(runners["ours"], batch), expected, atol=1e-3)
    losses = {}
    for name, runner in runners.items():
        set_training(runner, True)
        losses[name] = runner.loss(batch)
    torch.testing.assert_close(losses["none"], losses["hf"])
    assert not torch.isclose(losses["ours"], losses["hf"])


def test_contenders_share_their_weights():
    runners = contenders(small({"name": "static"}), Load(), "cpu")
    places = [{w.data_ptr() for w in weights(runner)} for runner in runners.values()]
    assert places[0] == places[1] == places[2]


def test_no_compression_is_the_measure_itself():
    (found,) = measured("router=none", "train=false")
    assert found["cost/prefill_flops_ratio"] == found["cost/visual_macs_ratio"] == 1
    assert found["rows"] == [64] * 4
    assert "time/train_step" not in found
    assert "time/decode" not in found


def test_a_projector_is_compared_with_llavas():
    (found,) = measured("router=none", "projector=random", "projector.keep=0.25", "train=false")
    assert found["rows"] == [16] * 4
    assert found["cost/prefill_flops_ratio"] < 0.7


@pytest.mark.slow
def test_every_combination_has_a_row_that_says_what_was_known_before():
    """Costs of a run, from its trace, are those of its configuration alone."""
    config = small({"name": "static", "layers": [1]})
    load = Load(batch_size=[1, 2], text_columns=8, new_tokens=[1, 3], pairs=1)
    rows, paper = measure(config, load), measure(config, replace(load, pairs=0))
    sizes = [(row["batch_size"], row["new_tokens"]) for row in rows]
    assert sizes == [(1, 1), (1, 3), (2, 1), (2, 3)]
    for row, known in zip(rows, paper, strict=True):
        costs = {key for key in row if key.startswith("cost/")}
        assert {key: row[key] for key in costs} == pytest.approx({k: known[k] for k in costs})
        assert row["rows"] == known["rows"] == [16, 16, 4, 4]
        over = row["time/prefill"].ratio / row["cost/prefill_flops_ratio"]
        assert row["over_flops/prefill"] == pytest.approx(over)
        assert row["time/prefill"].pairs == row["hf/prefill"].pairs == 1
        assert ("time/decode" in row) == (row["new_tokens"] == 3)
        assert ("time/train_step" in row) == (row["new_tokens"] == 1)
    assert sum(paper[0]["layers/kv_bytes"]) == paper[0]["cost/kv_bytes"]
    assert 2 * paper[0]["memory/saved_gib"] == pytest.approx(paper[2]["memory/saved_gib"], rel=0.02)


@pytest.mark.slow
def test_both_ends_of_a_router_are_known():
    most, fewest = measured("router=dpe", "pairs=0", "train=false")
    assert (most["route"], fewest["route"]) == ("most", "fewest")
    assert most["cost/visual_macs_ratio"] == 1 > fewest["cost/visual_macs_ratio"]
    (forced,) = measured("router=dpe", "route=[[2,2],[1,1],[1,1]]", "pairs=0", "train=false")
    assert forced["rows"] == [64, 16, 16, 16]


@pytest.mark.slow
def test_a_method_whose_rows_no_data_change_has_one_row():
    (found,) = measured("router=fastv", "pairs=0")
    assert found["route"] == "own"
    assert found["rows"][0] == 64 > found["rows"][-1]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_work_is_counted_by_part(checkpoint, monkeypatch):
    """Matrix products of a training step, backward products among them, counted by hand."""
    products, by_part = Counter(), profiling.by_part

    def spy(events):
        for event, part in by_part(events):
            products[part] += event.name in ("aten::mm", "aten::addmm")
            yield event, part

    monkeypatch.setattr(profiling, "by_part", spy)
    router = {"name": "dpe", "layers": [0], "min_rows": 1}
    runner = contenders(small(router), Load(checkpoint_layers=checkpoint), "cpu")["ours"]
    batch = make_batch(runner.model, 2, 8)
    set_training(runner, True)
    seconds = profiling.profile(runner, lambda c: train_step(c, batch), rounds=1)
    # Forward, twice as many backward, and what is checkpointed once more; in four layers.
    assert products["attention"] == 4 * 4 * (3 + checkpoint)
    assert products["FFN"] == 4 * 3 * (3 + checkpoint)
    assert products["head"] == 3
    assert products["projector"] == products["router"] == 2 * 3
    assert products["other"] == products["norms"] == products["pooling"] == 0
    assert set(seconds) == set(profiling.PARTS)
    assert min(seconds["pooling"], seconds["host"], seconds["vision"]) > 0


def test_a_profile_leaves_no_trace():
    runner = contenders(small({"name": "dpe", "min_rows": 1}), Load(), "cpu")["ours"]
    batch = make_batch(runner.model, 1, 8)
    profiling.profile(runner, lambda c: c.prompt(batch), rounds=1)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        runner.prompt(batch)
    assert not [event for event in profiler.events() if event.name.startswith("dpn")]


def test_files_hold_all_that_was_measured(tmp_path, capsys):
    load = Load(batch_size=1, text_columns=8, new_tokens=2, pairs=1, train=False, profile=True)
    (found,) = measure(small({"name": "static"}), load)
    for name in ("static", "dpe"):
        report.publish([{"model": f"router={each}"} | found for each in (name, "none")], tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["model"] for row in rows] == ["router=static", "router=none", "router=dpe"]
    assert "_ms" not in (tmp_path / "rows.json").read_text()  # other work on a CPU changes them
    assert sum(rows[0]["profile/prefill"]["none"].values()) == pytest.approx(1)
    table = (tmp_path / "table.md").read_text()
    assert table.count("| router=static |") == 3
    assert f"{rows[0]['time/decode']['ratio']:.3f}" in table
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "prefill, time by part" in capsys.readouterr().out


def test_the_table_shows_the_share_of_visual_macs():
    row = {"route": "own", "batch_size": 1, "text_columns": 8, "new_tokens": 2}
    row |= {"cost/visual_macs_ratio": 0.75, "cost/kv_bytes": 64, "cost/kv_bytes_ratio": 0.5}
    for part in ("prefill", "decode"):
        row |= {f"cost/{part}_flops": 1e9, f"cost/{part}_flops_ratio": 0.8}
    shown = report.table([row])
    lines = [dict(zip(shown.head, cells, strict=True)) for cells in shown.body]
    assert {line["part"]: line["visual MACs"] for line in lines} == {
        "prefill": "0.750",
        "decode": "",
    }


def test_mistakes_are_reported():
    def problems(*overrides):
        with pytest.raises(ConfigError) as caught:
            measured(*overrides)
        return " ".join(caught.value.problems)

    assert "`new_tokens=0` is not possible; it must be at least 1" in problems("new_tokens=0")
    assert "`batch_size=[2, 0]` is not possible" in problems("batch_size=[2,0]")
    assert "`text_columns=[]` is not possible; it must be a list" in problems("text_columns=[]")
    assert "`batch_size=x` has the wrong type" in problems("batch_size=x")
    assert "`route=best`" in problems("route=best")
    assert "The router picks no kernels" in problems("router=vtw", "route=[[2,2]]")
    assert "depends on what an image shows" in problems("projector=dfmr", "pairs=0")


@pytest.mark.gpu
def test_times_on_a_gpu():
    load = Load(batch_size=2, text_columns=8, new_tokens=4, pairs=2, dtype="bfloat16", profile=True)
    (row,) = measure(small({"name": "dpe", "min_rows": 1}), replace(load, route="fewest"))
    assert row["device"] == torch.cuda.get_device_name()
    for part in ("prefill", "decode", "answer", "train_step"):
        assert row[f"ms/{part}"] == sorted(row[f"ms/{part}"])
    assert row["tokens_per_s/answer"] == pytest.approx(4 * row["samples_per_s/answer"])
    assert row["profile/prefill"]["none"]["attention"] > 0


@pytest.mark.slow
def test_measuring_needs_torch_and_transformers_alone():
    absent = (
        *("accelerate", "antlr4", "datasets", "deepspeed", "hydra", "lightning", "matplotlib"),
        *("omegaconf", "peft", "PIL", "pyarrow", "rich", "sklearn", "torchmetrics", "wandb"),
    )
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))  # as if they were not installed
from dpn import DPNConfig
from dpn.bench import Load, measure
config = DPNConfig(text_config={TEXT}, vision_config={TOWER}, router_config={{"name": "static"}})
(row,) = measure(config, Load(batch_size=1, text_columns=8, new_tokens=2, pairs=1, profile=True))
print(row["rows"], [name for name in {absent} if sys.modules[name]])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[16.0, 4.0, 1.0, 1.0] []", done.stderr
