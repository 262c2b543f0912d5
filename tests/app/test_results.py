import io
import itertools
import json
import re
import shutil
import sys

import pytest
from PIL import Image
from rich.console import Console

from dpn import inference
from dpn.common.files import read_json, read_rows, write_json
from dpn.config import build, preflight
from dpn.config.compose import compose
from dpn.data.batch import DataError
from dpn.eval import evaluate
from dpn.generate import generate
from dpn.metrics import accuracies, by_level, cost_metrics, group_by, route_shares, score
from dpn.report import report
from dpn.reports.tables import tables
from dpn.runs.request import ConfigError
from dpn.train import train
from dpn.training.calibration import measured_share
from tests.app.conftest import timeless, tiny_run, without_times
from tools import search


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("red", "red", 1.0),
        (" red\n", "red", 1.0),
        ("blue", "red", 0.0),
        ("The quadrant is red.", "The quadrant is blue.", 0.0),
        ("It reads 314.", "It reads 315.", 2 / 3),
        ("1 2 3", "1, 2, 3", 1.0),
        ("12", "1234", 0.5),
        ("123456", "1234", 4 / 6),
        ("", "7", 0.0),
        ("none", "7", 0.0),
    ],
)
def test_score_of_digits(answer, reference, expected):
    assert score(answer, reference, "digits") == pytest.approx(expected)


def row(family, difficulty, right, route, rows, base=16, ratio=0.5):
    return {
        "family": family,
        "difficulty": difficulty,
        "score": right,
        "route": route,
        "rows": rows,
        "base_rows": base,
        "visual_macs_ratio": ratio,
        "prefill_flops": 100,
    }


ROWS = [
    row("coarse", 0, 1.0, {"0": "2x2", "1": "1x1"}, [16, 4], ratio=0.4),
    row("coarse", 0, 0.0, {"0": "1x2", "1": "1x1"}, [16, 8], ratio=0.6),
    row("fine", 5, 0.5, {"0": "1x1"}, [16, 16], ratio=1.0),
    row(None, None, 1.0, {}, [0, 0], base=0, ratio=float("nan")),
]


def test_metrics_by_hand():
    assert accuracies(ROWS) == {
        "val/accuracy": 2.5 / 4,
        "val/accuracy/coarse": 0.5,
        "val/accuracy/fine": 0.5,
    }
    cost = cost_metrics(ROWS)
    assert cost["cost/prefill_flops"] == 100
    assert cost["cost/visual_macs_ratio"] == pytest.approx(2 / 3)
    assert cost["router/kept/0"] == 1
    assert cost["router/kept/1"] == pytest.approx((4 + 8 + 16) / 48)
    thirds = {"1x1": pytest.approx(1 / 3), "1x2": pytest.approx(1 / 3), "2x2": pytest.approx(1 / 3)}
    assert route_shares(ROWS) == {"0": thirds, "1": {"1x1": 1.0}}
    assert accuracies([]) == cost_metrics([]) == {}


def test_levels_of_difficulty():
    rows = [{"difficulty": d} for d in (1, 2, 3, 4, 5, 6, 7, 8, 8)]
    assert {name: len(group) for name, group in by_level(rows).items()} == {
        "1-3": 3,
        "4-6": 3,
        "7-8": 3,
    }
    assert by_level(rows[:1]) == {}


ODD = [None, "", "a", "[/b]", 1, True, float("nan"), 1e308, 10**400, ["a"], {"a": 1}, "\ud83d"]


def test_no_family_or_difficulty_of_an_old_file_breaks_metrics_and_tables():
    for family, difficulty in itertools.product(ODD, ODD):
        rows = [{**ROWS[0], "family": family}, {**ROWS[1], "difficulty": difficulty}, ROWS[2]]
        assert accuracies(rows)["val/accuracy"] == 0.5
        by_level(rows)
        text = "".join(table.markdown() for table in tables({}, rows))
        assert "| fine | 1 | 0.500 | 1.000 |" in text
        text.encode()


def test_families_are_names_and_difficulties_are_sorted():
    def rows(key, values):
        return [{"family": None, "difficulty": None, key: value} for value in values]

    def levels(*values):
        return {name: len(group) for name, group in by_level(rows("difficulty", values)).items()}

    assert list(group_by(rows("family", [10, "9", 9, True]), "family")) == ["9", "10", "true"]
    hard_last = levels("hard", "easy", "Medium", "easy", "odd")
    assert list(hard_last.items()) == [("easy", 2), ("Medium", 1), ("hard", 1), ("odd", 1)]
    assert list(levels("10", 9, "9", 2.5)) == ["2.5", "9", "10"]
    assert list(levels("hard", 3, 1)) == ["1", "3", "hard"]
    assert levels(*(f"word {number}" for number in range(13))) == {}
    by_words = [row("b", "easy", 1, {}, [1]), row("a", "hard", 1, {}, [1])]
    assert list(group_by(by_words, "family")) == ["b", "a"]  # from easy to hard


def test_tables_show_everything():
    shown = tables({"val/loss": 1.25, "time/step_ms": None, "router/kept/0": 1.0}, ROWS)
    page = "\n".join(table.markdown() for table in shown)
    for cells in (
        "| coarse | 2 | 0.500 | 0.500 |",
        "| fine | 16.0 | 16.0 |",
        "| val/loss | 1.25 |",
    ):
        assert cells in page
    assert "| coarse | 2 | 0.375 | 1x2 0.50, 2x2 0.50 | 1x1 1.00 |" in page
    console = Console(file=io.StringIO(), width=100)
    for table in shown:
        table.show(console)
    assert "time/step_ms" in console.file.getvalue()


def test_tables_without_images_or_answers():
    assert [t.title for t in tables({"val/loss": 1.0}, ROWS[3:])] == ["Answers", "Numbers"]
    assert [t.title for t in tables({"val/loss": None}, [])] == ["Numbers"]


def test_report_is_made_again_from_the_files(finished, figures, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "figures")
    (copy / "report.md").unlink()
    report(str(copy))
    theirs, mine = ((f / "report.md").read_text().splitlines() for f in (finished, copy))
    assert mine[1:] == theirs[1:]
    assert {p.name for p in (copy / "figures").iterdir()} == {
        "accuracy.png",
        "rows.png",
        "routes.png",
    }


def test_report_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        report(str(tmp_path))


def test_evaluation_of_a_run_repeats_its_numbers(finished):
    folder = evaluate(compose("eval", [f"run={finished}"]))
    assert folder.parent == finished / "eval"
    theirs, mine = (read_json(f / "metrics.json") for f in (finished, folder))
    assert timeless(mine) == timeless(theirs)
    rows, before = (read_rows(place / "rows.jsonl") for place in (folder, finished))
    assert without_times(rows) == without_times(before)
    before = (folder / "metrics.json").stat().st_mtime_ns
    assert evaluate(compose("eval", [f"run={finished}"])) == folder
    assert (folder / "metrics.json").stat().st_mtime_ns == before


def test_evaluation_of_a_model_folder(finished, squares, tmp_path):
    model = shutil.copytree(finished / "model", tmp_path / "hub")
    with pytest.raises(ConfigError, match="names no data set"):
        evaluate(compose("eval", [f"run={model}"]))
    overrides = [
        o for o in tiny_run(squares, tmp_path / "there") if o.startswith(("data", "paths"))
    ]
    folder = evaluate(compose("eval", [f"run={model}", "max_new_tokens=4", *overrides]))
    assert folder.parent == tmp_path / "there" / "eval"
    assert read_json(folder / "metrics.json")["val/loss"] == pytest.approx(
        read_json(finished / "metrics.json")["val/loss"]
    )


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [(["run=/no/where"], "is not a folder"), (["run=.", "device=3"], "`device=3`")],
)
def test_bad_evaluations(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        evaluate(compose("eval", overrides))


def test_generate_answers_as_the_evaluation_did(finished, squares):
    first = read_rows(finished / "rows.jsonl")[0]
    found = generate(
        str(finished), "Which colour?", image=str(squares / "val-0.png"), max_new_tokens=4
    )
    assert found["answer"] == first["answer"]
    assert found["route"] == first["route"]
    assert found["rows"] == first["rows"]
    text_only = generate(str(finished), "Which colour?", max_new_tokens=2)
    assert text_only["base_rows"] == 0
    assert text_only["route"] == {}
    assert generate(str(finished), "Which?", max_new_tokens=2, temperature=2)["new_tokens"] > 0


def test_generate_refuses_bad_paths(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image=no\.png does not exist"):
        generate(str(finished), "What?", image="no.png")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        generate(str(tmp_path), "What?")


def test_batches_answer_as_single_prompts(finished, squares):
    model, processor = inference.load(finished, "cpu")
    images = [Image.open(squares / f"val-{n}.png").convert("RGB") for n in range(3)]
    asked = ["Which colour?", "How many letters has the name of this colour?", "Which?"]
    messages = [[{"role": "user", "content": f"<image>\n{question}"}] for question in asked]
    inputs = dict(processor(messages=messages, images=images))
    together = inference.answer(model, processor, inputs, 4)
    for question, image, found in zip(asked, images, together, strict=True):
        alone = inference.ask(model, processor, question, [image], 4)
        times = {key: alone[key] for key in ("ms", "prefill_ms")}
        ratio = pytest.approx(found["visual_macs_ratio"])
        assert alone == {**found, **times, "visual_macs_ratio": ratio}
        assert 0 < alone["prefill_ms"] <= alone["ms"]


def test_saved_model_is_replaced_whole(finished, tmp_path):
    model, processor = inference.load(finished, "cpu")
    folder = tmp_path / "model"
    for _ in range(2):
        inference.save(model, processor, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "dpn_llava"


def test_next_stage_starts_from_a_run(finished, squares, tmp_path, caplog):
    frozen = ["optim=adamw", "optim.lr=0.0", "trainer.max_steps=1"]
    further = [f"init.model={finished}", "router=none", *frozen]
    folder = train(compose("train", [*tiny_run(squares, tmp_path), *further]))
    assert "unexpected in router: router.gates.0" in caplog.text
    before, after = (inference.load(f, "cpu")[0].state_dict() for f in (finished, folder))
    assert all((after[name] == before[name]).all() for name in after)


@pytest.mark.slow
def test_keep_is_calibrated_on_training_questions(squares, tmp_path):
    """The trained model misses its target by more without the price that was saved with it."""
    overrides = [*tiny_run(squares, tmp_path), "router.keep=0.8", "data.eval_batch_size=5"]
    folder = train(compose("train", overrides))
    model, processor = inference.load(folder, "cpu")
    source = build.data_module(compose("train", overrides).config.data)
    source.processor = processor
    batches = inference.training_prompts(source, model.device, count=12)
    assert [len(batch["input_ids"]) for batch in batches] == [5, 5, 2]
    assert float(model.router.price) != 0
    priced = measured_share(model, batches)
    model.router.price.zero_()
    assert abs(priced - 0.8) < abs(measured_share(model, batches) - 0.8)


@pytest.mark.slow
def test_run_without_validation_data(squares, tmp_path):
    overrides = [*tiny_run(squares, tmp_path), "data.val_file=null", "trainer.max_steps=1"]
    folder = train(compose("train", overrides))
    assert read_json(folder / "metrics.json")["val/loss"] is None
    assert read_rows(folder / "rows.jsonl") == []


@pytest.mark.slow
def test_metrics_as_a_table(squares, tmp_path):
    further = ["logger=csv", "trainer.max_steps=2", "trainer.log_every_n_steps=1"]
    folder = train(compose("train", [*tiny_run(squares, tmp_path), *further]))
    (table,) = folder.glob("csv/version_0/metrics.csv")
    head = table.read_text().splitlines()[0].split(",")
    logged = {"loss/language", "loss/budget", "router/kept/3", "cost/visual_macs_ratio"}
    assert logged | {"time/step_ms"} <= set(head)
    assert "val/loss" not in head  # validation comes after 3 steps


@pytest.mark.slow
def test_scores_of_heads_go_from_a_run_into_a_model(
    finished, squares, tmp_path, monkeypatch, capsys
):
    line = ["search.py", f"run={finished}", "router=head_pruning", "samples=8"]
    monkeypatch.setattr(sys, "argv", line)
    search.main()
    path = finished / "head_scores.json"
    scores = read_json(path)["layers"]
    assert [len(row) for row in scores] == [2] * 4
    command = [*capsys.readouterr().out.split(), "router.threshold=0"]
    assert command[:2] == ["router=head_pruning", f"router.scores={path}"]
    pruned = train(compose("train", [*tiny_run(squares, tmp_path), *command]))
    section = read_json(pruned / "model" / "config.json")["router_config"]
    assert section["scores"] == scores
    monkeypatch.setattr(sys, "argv", ["search.py", f"run={tmp_path}", "router=head_pruning"])
    with pytest.raises(SystemExit):
        search.main()
    assert "give the folder of a finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("router", "options", "sentence"),
    [
        ("dpe", {}, "`router=dpe` has no settings to search for; depth_routing, head_pruning"),
        ("vtv", {}, "`router=vtv` is unknown; did you mean `vtw`?"),
        ("vtw", {"smaples": 4}, "`smaples` is not a setting; did you mean `samples`?"),
        ("vtw", {"eta": "high"}, "`eta=high` has the wrong type; expected a number"),
    ],
)
def test_an_invalid_search_is_refused_before_a_model_is_read(router, options, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        search.search("no_such_run", router, **options)


def test_heads_are_not_scored_on_text_alone(finished, squares, tmp_path):
    for split in ("train", "val"):
        rows = read_json(squares / f"{split}.json")
        for row in rows:
            del row["image"]
            row["conversations"][0]["value"] = "Which colour?"
        write_json(tmp_path / f"{split}.json", rows)
    run = shutil.copytree(finished, tmp_path / "run")
    config = (run / "config.yaml").read_text().replace(str(squares), str(tmp_path))
    (run / "config.yaml").write_text(config)
    with pytest.raises(DataError, match="was trained on text alone"):
        search.search(str(run), "head_pruning")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vtw", "redundancy_lens", "depth_routing", "yopo"])
def test_what_a_search_finds_makes_a_router(
    method, finished, squares, tmp_path, monkeypatch, capsys
):
    line = ["search.py", f"run={finished}", f"router={method}", "samples=4"]
    monkeypatch.setattr(sys, "argv", line)
    search.main()
    overrides = capsys.readouterr().out.split()
    assert overrides[0] == f"router={method}"
    preflight.check(compose("train", [*tiny_run(squares, tmp_path), *overrides]))
