"""Run folders and journals of answers: read as written, or named."""

import json
import shutil

import pytest
import yaml

from dpn.common.errors import FileError
from dpn.inference.questions import Journal
from dpn.report import report, report_all
from dpn.runs.folder import RunFolder
from tests.app.run_folders import write_run
from tests.fuzz.mutation import mutate_bytes, mutate_value

pytestmark = pytest.mark.slow

FILES = ("status.json", "metrics.json", "rows.jsonl", "config.yaml", "curves.jsonl")


def _damage(rng, file):
    """Change the bytes of a file, or the value that it holds."""
    data = file.read_bytes()
    if rng.random() < 0.5:
        file.write_bytes(mutate_bytes(rng, data, rng.choice((1, 2))))
    elif file.suffix == ".jsonl":
        rows = mutate_value(rng, [json.loads(line) for line in data.split(b"\n")[:-1]], 2)
        rows = rows if isinstance(rows, list) else [rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif file.suffix == ".yaml":
        changed = mutate_value(rng, yaml.safe_load(data), 2)
        file.write_text(yaml.safe_dump(changed), "utf-8", "surrogatepass")
    else:
        file.write_text(json.dumps(mutate_value(rng, json.loads(data), 2)), encoding="utf-8")


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "whole" / "a")
    write_run(tmp_path / "whole" / "b", router="dpe", share=0.5, keep=0.5)
    return tmp_path / "whole"


@pytest.mark.parametrize("reader", ["one", "all", "writer"])
def test_run_folders(fuzz, runs, tmp_path, reader, capsys, monkeypatch):
    """A report is made of what is whole; a writer takes the folder over, or says why not."""
    monkeypatch.setattr("dpn.reports.page.draw", lambda rows, folder: [])

    def attempt(rng):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        shutil.copytree(runs, tmp_path / "runs")
        for name in rng.sample(FILES, rng.choice((1, 2))):
            _damage(rng, tmp_path / "runs" / "a" / name)
        if reader == "one":
            report(str(tmp_path / "runs" / "a"))
        elif reader == "all":
            report_all(str(tmp_path / "runs"))
        else:
            with RunFolder(tmp_path / "runs" / "a"):
                pass
        capsys.readouterr()

    fuzz.run(attempt)


def test_journals(fuzz, tmp_path):
    """An answer is read as it was written, or asked again."""
    answers = {
        number: {"answer": text, "id": number, "score": None}
        for number, text in enumerate(("red", "", "a\u2028b", "c\x85d", "é\n\r x", '"[1, {}]'))
    }
    journal = Journal(tmp_path, "name")
    journal.add({number: answers[number] for number in (0, 1, 2)})
    journal.add({number: answers[number] for number in (3, 4, 5)})
    assert journal.read() == answers
    whole = journal.path.read_bytes()

    def attempt(rng):
        journal.path.write_bytes(mutate_bytes(rng, whole, rng.choice((1, 2))))
        read = journal.read()
        assert all(row == answers[number] for number, row in read.items())
        if len(read) < len(answers):
            raise FileError("Some answers are damaged; they are asked again.")

    fuzz.run(attempt)
