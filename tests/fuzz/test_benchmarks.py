"""Files of benchmarks and replies of judges: scored, or refused with the file's name."""

import json
import math
import shutil

import pytest

from dpn import benchmarks
from tests.benchmarks.test_contracts import module_of
from tests.fuzz.mutation import mutate_bytes, mutate_value

pytestmark = pytest.mark.slow


def _scored(benchmark, folder):
    questions = benchmark.questions()
    for question in questions:
        for image in question.images:
            assert image().mode == "RGB"
    answers = [str(question.reference)[:20] for question in questions]
    benchmark.write(questions, answers, folder, "tiny")
    scores = benchmark.score(questions, answers, folder)
    assert all(math.isfinite(value) for value in scores.metrics.values())
    assert all(score is None or 0 <= score <= 1 for score in scores.samples)


def _changed(rng, file):
    """The bytes of a file after a change of its bytes, or of one of its JSON values."""
    data = file.read_bytes()
    if file.suffix not in (".json", ".jsonl") or rng.random() < 0.4:
        return mutate_bytes(rng, data, rng.choice((1, 2)))
    try:
        return json.dumps(mutate_value(rng, json.loads(data))).encode()
    except ValueError:  # one value on each line
        rows = mutate_value(rng, [json.loads(line) for line in data.splitlines()])
    rows = rows if isinstance(rows, list) else [rows]
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_benchmark_files(fuzz, tmp_path):
    for name in benchmarks.names():
        module_of(name).make(tmp_path / name)
    files = {
        name: sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        for name in benchmarks.names()
    }

    def attempt(rng):
        name = rng.choice(sorted(files))
        file = rng.choice(files[name])
        whole = file.read_bytes()
        try:
            file.write_bytes(_changed(rng, file))
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            _scored(benchmarks.build(name, root=tmp_path / name), tmp_path / "out")
        finally:
            file.write_bytes(whole)

    fuzz.run(attempt)


REPLIES = {
    "llava_bench": (
        "reviews.jsonl",
        [{"question_id": n, "content": f"{n} 8\nGood."} for n in range(3)],
    ),
    "mm_vet": ("grades.json", {f"v1_{n}": {"model": ["gpt-4"], "score": [0.5]} for n in range(3)}),
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies_of_judges(fuzz, name, tmp_path):
    """Scores are numbers in their range, or the reply is refused."""
    module_of(name).make(tmp_path)
    benchmark = benchmarks.build(name, root=tmp_path)
    file, replies = REPLIES[name]

    def attempt(rng):
        changed = mutate_value(rng, replies, rng.choice((1, 2)))
        lines = changed if file.endswith("l") and isinstance(changed, list) else [changed]
        (tmp_path / file).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        questions = benchmark.questions()
        scores = benchmark.score(questions, ["a"] * len(questions), tmp_path)
        assert all(math.isfinite(value) for value in scores.metrics.values())
        assert all(score is None or 0 <= score <= 1 for score in scores.samples)

    fuzz.run(attempt)
