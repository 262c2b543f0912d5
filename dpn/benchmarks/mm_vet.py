"""MM-Vet: open questions that combine six capabilities, graded by GPT-4 (arXiv 2308.02490)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from dpn.benchmarks._files import (
    ID,
    check_same,
    check_unique,
    image_of,
    read_jsonl,
    read_object,
)
from dpn.benchmarks.base import EVAL_ZIP, Benchmark, OfficialFile, Question, Scores, percent
from dpn.common.files import write_json
from dpn.data.batch import DataError

_RELEASE = "mm-vet.zip, a release of github.com/yuweihao/MM-Vet"


class MMVet(Benchmark):
    """MM-Vet: open questions, graded from 0 to 1 by a judge.

    `predictions.json` is for MM-Vet's evaluator: answers by `v1_<question_id>`, empty if there is
    none. Save the grades that it writes (`..._gpt-4-...-grade-1runs.json`) beside it as
    `grades.json`: for each of these ids `{"score": [...]}` with one number from 0 to 1 per run. New
    answers need new grades.

    Metrics: score, the mean in percent, overall and per capability.
    """

    files = (
        OfficialFile("mm-vet/llava-mm-vet.jsonl", EVAL_ZIP),
        OfficialFile("mm-vet/mm-vet.json", _RELEASE),
        OfficialFile("mm-vet/images", _RELEASE),
    )
    headline = "score"
    max_new_tokens = 1024

    def questions(self) -> list[Question]:
        folder = self.root / "mm-vet"
        path, truth = folder / "llava-mm-vet.jsonl", folder / "mm-vet.json"
        entries = read_object(truth, {"answer": str, "capability": list})
        rows = read_jsonl(path, {"question_id": ID, "image": str, "text": str})
        check_unique((_key(row["question_id"]) for row in rows), path)
        check_same((_key(row["question_id"]) for row in rows), entries, path, truth)
        questions = []
        for row in rows:
            entry = entries[_key(row["question_id"])]
            if not all(isinstance(name, str) for name in entry["capability"]):
                raise DataError(
                    f"{truth}, entry {_key(row['question_id'])!r}: field 'capability' must hold"
                    " texts."
                )
            image = image_of(folder / "images", row["image"])
            meta = {"capability": entry["capability"]}
            questions.append(
                Question(row["question_id"], row["text"], (image,), entry["answer"], meta=meta)
            )
        return questions

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        path = folder / "grades.json"
        if not path.exists():
            return Scores({}, [None] * len(questions))
        grades = read_object(path, {"score": list})
        samples = []
        groups: dict[str, list[float]] = {}
        for question, answer in zip(questions, answers, strict=True):
            key = _key(question.id)
            runs = grades.get(key, {}).get("score")
            if not runs or not all(_is_grade(run) for run in runs):
                raise DataError(
                    f"{path}, entry {key!r}: field 'score' is {runs!r}; it must be a list of"
                    " numbers from 0 to 1, one for each run of the judge."
                )
            samples.append(0.0 if answer is None else fmean(runs))
            for name in question.meta["capability"]:
                groups.setdefault(f"score/{name}", []).append(samples[-1])
        metrics = {name: percent(values) for name, values in groups.items()}
        return Scores({"score": percent(samples), **metrics}, list(samples))

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        """Write the answers to predictions.json."""
        said = {
            _key(question.id): answer or ""
            for question, answer in zip(questions, answers, strict=True)
        }
        write_json(folder / "predictions.json", said)


def _key(question_id: int | str) -> str:
    return f"v1_{question_id}"


def _is_grade(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
