"""Reports of many runs, from run folders that were written by hand."""

import json
import shutil
import socket

import pytest

from dpn.common.files import read_json, read_rows, write_rows
from dpn.reports import comparison_tables as tables
from dpn.reports.comparison import compare
from dpn.reports.differences import differences
from dpn.reports.points import baseline_of, difference
from dpn.reports.publish import all_tables
from dpn.reports.runs import find_runs
from dpn.runs.labels import labels
from tests.app.run_folders import set_status, write_run, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return compare([write_sweep(tmp_path_factory.mktemp("sweep"))])


def line(table, name):
    """The row of a table that starts with a name, by its head."""
    (found,) = (cells for cells in table.body if cells[0] == name)
    return dict(zip(table.head, found, strict=True))


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b/c/d")]
    write_run(tmp_path / "a" / "eval" / "default")
    assert find_runs([tmp_path, tmp_path / "b", runs[0]]) == runs


@pytest.mark.parametrize(
    ("name", "sentence"), [("no", "is not a folder"), ("", "There is no run in")]
)
def test_folders_without_runs(name, sentence, tmp_path):
    with pytest.raises(FileNotFoundError, match=sentence):
        find_runs([tmp_path / name])


def test_runs_that_differ_in_the_seed_are_one_point(sweep):
    names = ["router=dpe keep=0.5", "router=dpe keep=0.8", "router=none", "router=static keep=0.4"]
    assert [point.name for point in sweep.points] == names
    assert all([run.seed for run in point.runs] == [0, 1] for point in sweep.points)
    assert sweep.methods == ["router=dpe", "router=none", "router=static"]


def test_names_hold_only_what_differs(tmp_path):
    shared = ("debug=fast", "logger=csv")
    write_run(tmp_path / "a", typed=(*shared, "seed=0"))
    write_run(tmp_path / "b", router="dpe", typed=(*shared, "router=dpe", "+x=1", "num_workers=2"))
    assert {point.name for point in compare([tmp_path]).points} == {"default", "+x=1 router=dpe"}


def test_each_data_set_and_metric_is_compared_by_itself(tmp_path):
    sets = {
        "a": ({"name": "llava_json", "val_file": "d/a.json", "train_rows": 5}, "normalised"),
        "b": ({"name": "llava_json", "val_file": "d/b.json"}, "normalised"),
        "c": ({"name": "llava_json", "val_file": "d/a.json", "batch_size": 2}, "anls"),
    }
    for name, (data, metric) in sets.items():
        given = {"data": data, "metric": metric, "prompt": name}
        file = f"data.val_file={data['val_file']}"
        scores = {"a": 0.2, "b": 0.9, "c": 0.5}[name]
        for router, share in (("none", 1.0), ("dpe", 0.5)):
            typed = (f"router={router}", file)
            write_run(
                tmp_path / f"{router}-{name}", router, (scores,) * 4, share, typed=typed, **given
            )
    found = compare([tmp_path])
    labels = [data_set.label for data_set in found.data_sets]
    assert labels == [
        "metric=anls val_file=a.json",
        "metric=normalised val_file=a.json",
        "metric=normalised val_file=b.json",
    ]
    for data_set, score in zip(found.data_sets, ("0.500", "0.200", "0.900"), strict=True):
        assert [point.name for point in data_set.points] == ["router=dpe", "router=none"]
        assert line(tables.methods(data_set.points), "router=dpe")["baseline"] == "router=none"
        assert line(tables.budgets(data_set.points), "1")["accuracy"] == score
        assert f"metric {data_set.points[0].settings['data.metric']}" in (
            tables.methods(data_set.points).note
        )
    titles = [table.title for table in all_tables(found)]
    assert "Best per budget: metric=normalised val_file=b.json" in titles
    assert len(titles) == len(set(titles))


def test_settings_of_training_data_make_no_other_data_set(tmp_path):
    for rows in (5, 9):
        data = {"name": "llava_json", "val_file": "a.json", "train_rows": rows, "num_workers": rows}
        write_run(tmp_path / f"{rows}", data=data, typed=(f"data.train_rows={rows}",))
    (only,) = compare([tmp_path]).data_sets
    assert only.label == ""
    assert {point.name for point in only.points} == {"data.train_rows=5", "data.train_rows=9"}
    for rows in (6, 7):
        data = {"name": "llava_json", "train_file": f"{rows}.json", "holdout": 2}
        write_run(tmp_path / f"held-{rows}", data=data)
    assert len(compare([tmp_path]).data_sets) == 3


def test_a_label_holds_what_differs():
    long = "data.image_root=/" + "x" * 200
    assert labels([["router=dpe", long], ["router=none", long]]) == ["router=dpe", "router=none"]
    assert labels([["router=dpe", long, "model=tiny"]]) == ["router=dpe"]
    assert labels([[long]]) == ["default"]
    weights = [["init.model=/a/b"], ["init.model=/a/c"]]
    assert labels(weights) == ["init.model=b", "init.model=c"]
    weights = [["init.model=/x/a/b"], ["init.model=/x/c/b"]]
    assert labels(weights) == ["init.model=a/b", "init.model=c/b"]
    twice = [["init.model=/a/b", "x=1"], ["init.model=/a/b", "x=1"], ["x=1"]]
    assert labels(twice) == ["init.model=b", "init.model=b", "default"]
    words = "x" * 90
    (one, other) = labels([[f"router.a={words}1"], [f"router.a={words}2"]])
    assert one != other
    assert max(map(len, (one, other))) < 60
    both = [f"router.a=1{words}{n}{words}" for n in "12"]  # they differ in the middle alone
    assert labels([[word] for word in both]) == both


def test_questions_with_the_same_id_and_words_are_told_apart(tmp_path):
    for name, scores in {"a": (1.0, 1.0, 1.0, 0.0), "b": (1.0, 1.0, 0.0, 1.0)}.items():
        folder = write_run(tmp_path / name, {"a": "dpe", "b": "none"}[name], scores)
        rows = [
            {**row, "id": "same", "prompt": "Which?"} for row in read_rows(folder / "rows.jsonl")
        ]
        write_rows(folder / "rows.jsonl", rows)
    dpe, none = compare([tmp_path]).points
    assert difference(dpe, none).questions == 4
    whole, _ = differences(dpe.rows, none.rows, "none")
    assert [(cells[1], cells[2], cells[3]) for cells in whole.body] == [
        ("2", "1", "0"),
        ("2", "0", "1"),
    ]
    numbered = [[{**row, "row": n} for n, row in enumerate(p.rows)] for p in (dpe, none)]
    shifted = differences(numbered[0][1:], numbered[1], "none")[0]  # one row was skipped
    assert [cells[2:4] for cells in shifted.body] == [("0", "1"), ("1", "0")]


def test_runs_from_before_overrides_were_written_down(tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path / f"router-dpe_seed-{seed}-0123abc{seed}", "dpe", seed=seed)
        set_status(folder, "finished")
    (point,) = compare([tmp_path]).points
    assert point.name == "router-dpe"


def test_a_copy_does_not_count_as_another_seed(tmp_path):
    shutil.copytree(write_run(tmp_path / "a"), tmp_path / "b")
    found = compare([tmp_path])
    assert [len(point.runs) for point in found.points] == [1]
    assert found.left_out[0].problem == f"Same settings and seed as {tmp_path / 'a'}."


def test_differences_by_hand(sweep):
    dpe, _, none, static = sweep.points
    assert baseline_of(dpe, sweep.points) is none
    assert baseline_of(none, sweep.points) is None
    found = difference(static, none)
    assert (found.mean, found.seeds, found.questions) == (pytest.approx(-0.5), 2, 4)
    shown = tables.methods(sweep.points)
    assert line(shown, "router=dpe keep=0.5")["difference"] == "+0.000 [+0.000, +0.000]"
    assert line(shown, "router=dpe keep=0.5")["claim"] == "no difference shown"
    assert line(shown, "router=static keep=0.4")["accuracy"] == "0.250 ± 0.000"
    assert line(shown, "router=static keep=0.4")["claim"] == "no difference shown"  # 4 questions
    assert line(shown, "router=none")["claim"] == "-"


def test_a_claim_needs_an_interval_without_zero(tmp_path):
    write_run(tmp_path / "none", scores=(1.0,) * 40)
    write_run(tmp_path / "static", "static", scores=(0.0, 0.0, 0.0, 1.0) * 10, share=0.3)
    point = line(tables.methods(compare([tmp_path]).points), "router=static")
    assert (point["claim"], point["baseline"]) == ("worse", "router=none")


def test_other_seeds_and_other_questions_are_not_compared(tmp_path):
    write_run(tmp_path / "none", seed=0)
    write_run(tmp_path / "a", "static", seed=1)
    write_run(tmp_path / "b", "dpe", prompt="Who?")
    shown = tables.methods(compare([tmp_path]).points)
    for name in ("router=static", "router=dpe"):
        assert line(shown, name)["claim"] == "no seed and question in common"


def test_seeds_of_the_baseline_that_are_missing_are_told(tmp_path):
    write_run(tmp_path / "none", seed=0)
    for seed in (0, 1):
        write_run(tmp_path / f"dpe-{seed}", "dpe", seed=seed)
    shown = tables.methods(compare([tmp_path]).points)
    assert line(shown, "router=dpe")["claim"] == "no difference shown (1 of 2 seeds)"


def test_the_baseline_has_the_same_other_settings(tmp_path):
    for size in (8, 16):
        for router in ("none", "dpe"):
            folder = write_run(tmp_path / f"{router}-{size}", router, typed=(f"x={router}{size}",))
            with (folder / "config.yaml").open("a") as file:
                file.write(f"size: {size}\n")
    shown = tables.methods(compare([tmp_path]).points)
    assert line(shown, "x=dpe8")["baseline"] == "x=none8"
    assert line(shown, "x=dpe16")["baseline"] == "x=none16"


def test_best_per_budget(sweep):
    best = {cells[0]: cells[1] for cells in tables.budgets(sweep.points).body}
    assert best == {
        "0.4": "router=static keep=0.4",
        "0.5": "router=dpe keep=0.5",
        "0.8": "router=dpe keep=0.5",
        "1": "router=dpe keep=0.5",
    }


def test_the_best_is_compared_with_the_next(tmp_path):
    write_run(tmp_path / "none", scores=(1.0,) * 40)
    write_run(tmp_path / "static", "static", scores=(0.0, 0.0, 0.0, 1.0) * 10, share=0.3, keep=0.3)
    low, high = tables.budgets(compare([tmp_path]).points).body
    assert low[1:] == ("router=static keep=0.3", "0.250", "0.300", "-", "-", "-")
    assert high[1:5] == ("router=none", "1.000", "1.000", "router=static keep=0.3")
    assert (high[5][:6], high[6]) == ("+0.750", "better")


def test_families_costs_and_layers_by_hand(sweep):
    families = line(tables.families(sweep.points), "router=static keep=0.4")
    assert families == {
        "method": "router=static keep=0.4",
        "easy": "0.500 ± 0.000",
        "hard": "0.000 ± 0.000",
    }
    costs = line(tables.costs(sweep.points), "router=static keep=0.4")
    assert "2.00 ± 0.00" in costs.values()  # GFLOPs
    assert "1.65 ± 0.07" in costs.values()  # ms: 1.6 and 1.7
    assert line(tables.layers(sweep.points), "router=static keep=0.4") == {
        **{"method": "router=static keep=0.4", "0": "1.000", "1": "1.000"},
        **{"2": "0.375", "3": "0.250"},  # 6 and 4 of 16 rows
    }


def test_what_is_compressed_otherwise_is_no_baseline(tmp_path):
    write_run(tmp_path / "a", share=0.5)
    write_run(tmp_path / "b", "dpe", share=0.5)
    assert line(tables.methods(compare([tmp_path]).points), "router=dpe")["baseline"] == "-"


def test_settings_that_differ(sweep):
    shown = {cells[0]: cells[1:] for cells in tables.settings(sweep.points).body}
    assert shown == {
        "router.keep": ("0.5", "0.8", "null", "0.4"),
        "router.name": ("dpe", "dpe", "none", "static"),
    }


DAMAGES = {
    "metrics.json": ["", "{", "[]", '{"val/accuracy": "high"}'],
    "rows.jsonl": ['{"id": "val-0", "tu', "{}", "null", '{"route": []}', "\n"],
    "config.yaml": ["", "a: [", "seed: 0", "- 1"],
    "status.json": ["", "{", '{"status": "well"}', "3", "[" * 100_000],
    "curves.jsonl": ['{"step": 1', "1"],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_runs_are_named_and_break_nothing(name, tmp_path):
    folders = []
    for number, text in enumerate(DAMAGES[name]):
        folders.append(write_run(tmp_path / f"damaged-{number}"))
        (folders[-1] / name).write_text(text)
    folders.append(write_run(tmp_path / "bytes"))
    (folders[-1] / name).write_bytes(b"\xff\xfe\x00")
    if name != "curves.jsonl":
        folders.append(write_run(tmp_path / "missing"))
        (folders[-1] / name).unlink()
    write_run(tmp_path / "whole", seed=5)
    found = compare([tmp_path])
    assert [run.folder for point in found.points for run in point.runs] == [tmp_path / "whole"]
    assert {run.folder for run in found.left_out} == {*folders}
    for run in found.left_out:
        assert (run.outcome, name in run.problem) == ("damaged", True)


def test_runs_that_did_not_finish(tmp_path):
    for status, fields in {
        "failed": {"error": "ValueError: <b>" + "long " * 200},
        "interrupted": {"error": "SIGINT"},
        "running": {"pid": 77},
        "unreachable": {"error": "The configuration has 1 problem:\n- `keep=0.1` is too low."},
    }.items():
        folder = write_run(tmp_path / status)
        (folder / "metrics.json").unlink()
        (folder / "log.txt").touch()
        set_status(folder, status, **fields)
    set_status(write_run(tmp_path / "killed"), "running", heartbeat=0)
    here = {"host": socket.gethostname(), "pid": 2**30}  # no process has such a number
    set_status(write_run(tmp_path / "just_killed"), "running", **here)
    shown = {cells[0]: cells[1:] for cells in tables.left_out(compare([tmp_path]).left_out).body}
    shown = {name.rpartition("/")[2]: cells for name, cells in shown.items()}
    assert shown["failed"][0] == "failed"
    assert len(shown["failed"][1]) == 300
    assert shown["failed"][2] == str(tmp_path / "failed" / "log.txt")
    assert shown["interrupted"][:2] == ("interrupted", "SIGINT")
    assert shown["running"] == ("running", "By process 77 on here.", "-")
    assert shown["unreachable"][1].endswith("1 problem: - `keep=0.1` is too low.")
    assert shown["killed"][0] == shown["just_killed"][0] == "interrupted"


def test_evaluations_are_not_taken_for_runs(tmp_path):
    folder = write_run(tmp_path / "eval" / "default")
    with (folder / "config.yaml").open("a") as file:
        file.write("benchmarks: [held_out]\n")
    (run,) = compare([tmp_path]).left_out
    assert run.outcome == "evaluation"


def test_a_score_that_is_no_number_claims_nothing(tmp_path):
    for router in ("none", "dpe"):
        folder = write_run(tmp_path / router, router)
        text = (folder / "rows.jsonl").read_text().replace('"score": 0.0', '"score": NaN')
        (folder / "rows.jsonl").write_text(text)
    shown = line(tables.methods(compare([tmp_path]).points), "router=dpe")
    assert shown["claim"] == "no difference shown"
    assert shown["difference"] == "+0.000 [+0.000, +0.000]"  # of the other three


def test_a_metric_that_is_infinite_counts_as_missing(tmp_path):
    folder = write_run(tmp_path / "a")
    found = read_json(folder / "metrics.json") | {"val/accuracy": 12345.0}
    text = json.dumps(found).replace("12345.0", "1e999")
    (folder / "metrics.json").write_text(text)
    (shown,) = tables.methods(compare([tmp_path]).points).body
    assert shown[2:4] == ("-", "1.000")
