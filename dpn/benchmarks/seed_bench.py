"""SEED-Bench: twelve kinds of questions about images and videos (arXiv 2307.16125)."""

from collections.abc import Sequence
from pathlib import Path

from dpn.benchmarks._files import (
    ID,
    Fields,
    check_same,
    check_unique,
    checked,
    image_of,
    keyed,
    read_array,
    read_json,
    read_jsonl,
)
from dpn.benchmarks.base import (
    EVAL_ZIP,
    Benchmark,
    OfficialFile,
    Question,
    Scores,
    by_category,
    percent,
)
from dpn.common.files import write_rows
from dpn.data.batch import DataError

_REPOSITORY = "see DATASET.md of github.com/AILab-CVC/SEED-Bench"


class SEEDBench(Benchmark):
    """SEED-Bench: questions with four options; videos are shown by their middle frame.

    An answer is correct if it is exactly the letter. upload.jsonl is for the leaderboard.

    Metrics: accuracy overall (which papers report), of images, of videos and per kind of question.
    """

    files = (
        OfficialFile("seed_bench/llava-seed-bench.jsonl", EVAL_ZIP),
        OfficialFile("seed_bench/SEED-Bench.json", _REPOSITORY),
        OfficialFile("seed_bench/SEED-Bench-image", _REPOSITORY),
        OfficialFile(
            "seed_bench/SEED-Bench-video-image",
            f"middle frames of the videos, {_REPOSITORY}, and extract_video_frames.py of eval.zip",
        ),
    )

    def questions(self) -> list[Question]:
        folder = self.root / "seed_bench"
        path, truth = folder / "llava-seed-bench.jsonl", folder / "SEED-Bench.json"
        rows = read_jsonl(path, {"question_id": ID, "image": str, "text": str})
        fields: Fields = {
            "question_id": ID,
            "question_type_id": int,
            "data_type": str,
            "answer": str,
        }
        found = read_array(truth, fields, "questions")
        entries = keyed(((_key(row["question_id"]), row) for row in found), truth)
        check_unique((_key(row["question_id"]) for row in rows), path)
        check_same((_key(row["question_id"]) for row in rows), entries, path, truth)
        kinds = self._kinds(truth)
        questions = []
        for row in rows:
            entry = entries[_key(row["question_id"])]
            if entry["question_type_id"] not in kinds:
                raise DataError(
                    f"{truth}: question {entry['question_id']} is of kind"
                    f" {entry['question_type_id']}, which 'question_type' does not name."
                )
            image = image_of(folder, row["image"])
            kind = kinds[entry["question_type_id"]]
            meta = {"data_type": entry["data_type"], "upload_id": entry["question_id"]}
            questions.append(
                Question(row["question_id"], row["text"], (image,), entry["answer"], kind, meta)
            )
        return questions

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        right = [
            float(answer == question.reference)
            for question, answer in zip(questions, answers, strict=True)
        ]
        groups = by_category(questions, right)
        for question, value in zip(questions, right, strict=True):
            groups.setdefault(question.meta["data_type"], []).append(value)
        metrics = {f"accuracy/{name}": percent(values) for name, values in groups.items()}
        return Scores({"accuracy": percent(right), **metrics}, list(right))

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        """Write upload.jsonl; a missing answer is written as an empty one."""
        rows = [
            {"question_id": question.meta["upload_id"], "prediction": answer or ""}
            for question, answer in zip(questions, answers, strict=True)
        ]
        write_rows(folder / "upload.jsonl", rows)

    def _kinds(self, path: Path) -> dict[int, str]:
        """Read the names of the kinds of questions by number."""
        whole = checked(read_json(path), {"question_type": dict}, path, "'question_type'", "entry")
        kinds = whole["question_type"]
        checked(kinds, dict.fromkeys(kinds, int), path, "'question_type'", "entry")
        return keyed(((number, name) for name, number in kinds.items()), path, "question type")


def _key(question_id: int | str) -> str:
    """Return an id as text; one file has numbers where the other has texts."""
    try:
        return str(int(question_id))
    except ValueError:
        return str(question_id)
