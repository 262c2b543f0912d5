"""POPE: yes/no questions about whether an object is in the image (arXiv 2305.10355)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from dpn.benchmarks._files import ID, check_same, image_of, keyed, read_jsonl
from dpn.benchmarks.base import EVAL_ZIP, SHORT, Benchmark, OfficialFile, Question, Scores
from dpn.data.batch import DataError

CATEGORIES = ("random", "popular", "adversarial")
#: The release that LLaVA's questions are from; a later one asks other questions in `random`.
_LABELS = "output/coco of github.com/AoiDragon/POPE at commit e3e39262"


class POPE(Benchmark):
    """POPE: three sets of yes/no questions about objects in COCO images.

    As in LLaVA, the text before the first full stop is split at single spaces after removing
    commas; the answer is `no` if a word is exactly `No`, `no` or `not`, otherwise `yes`. Labels are
    found by image and text; LLaVA matches the lines by position.

    Metrics: accuracy, precision, recall, f1 (positive: yes) and yes_ratio per category, and
    accuracy and f1 as means over the categories; papers report f1.
    """

    files = (
        OfficialFile("pope/llava_pope_test.jsonl", EVAL_ZIP),
        *(OfficialFile(f"pope/coco/coco_pope_{name}.json", _LABELS) for name in CATEGORIES),
        OfficialFile("pope/val2014", "val2014.zip of cocodataset.org"),
    )
    headline = "f1"

    def questions(self) -> list[Question]:
        path = self.root / "pope" / "llava_pope_test.jsonl"
        rows = read_jsonl(path, {"question_id": ID, "image": str, "text": str, "category": str})
        for row in rows:
            if row["category"] not in CATEGORIES:
                raise DataError(
                    f"{path}: question {row['question_id']} has the category {row['category']!r};"
                    f" it must be one of {', '.join(CATEGORIES)}."
                )
        labels = {name: self._labels(name) for name in CATEGORIES}
        for name, own in labels.items():
            asked = [_key(row) for row in rows if row["category"] == name]
            hint = f"take the labels from {_LABELS}, and the questions from {EVAL_ZIP}"
            check_same(asked, own, path, self._label_file(name), hint)
        return [
            Question(
                row["question_id"],
                row["text"],
                (image_of(self.root / "pope" / "val2014", row["image"]),),
                labels[row["category"]][_key(row)],
                row["category"],
            )
            for row in rows
        ]

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        said = [
            _other(question.reference) if answer is None else yes_or_no(answer)
            for question, answer in zip(questions, answers, strict=True)
        ]
        metrics: dict[str, float] = {}
        for name in CATEGORIES:
            pairs = [
                (word, question.reference)
                for word, question in zip(said, questions, strict=True)
                if question.category == name
            ]
            if pairs:
                metrics |= {f"{key}/{name}": value for key, value in _binary(pairs).items()}
        for key in ("accuracy", "f1"):
            of_categories = [v for name, v in metrics.items() if name.startswith(f"{key}/")]
            if of_categories:
                metrics[key] = fmean(of_categories)
        right = [float(w == q.reference) for w, q in zip(said, questions, strict=True)]
        return Scores(metrics, list(right))

    def _label_file(self, category: str) -> Path:
        return self.root / "pope" / "coco" / f"coco_pope_{category}.json"

    def _labels(self, category: str) -> dict[tuple[str, str], str]:
        """Read the labels of a category by image and text."""
        path = self._label_file(category)
        rows = read_jsonl(path, {"image": str, "text": str, "label": str})
        for number, row in enumerate(rows, 1):
            if row["label"] not in ("yes", "no"):
                raise DataError(
                    f"{path}, entry {number}: label {row['label']!r} must be yes or no."
                )
        return keyed(((_key(row), row["label"]) for row in rows), path)


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    """Image and text of a question, without the suffix that LLaVA adds."""
    return row["image"], row["text"].removesuffix(SHORT).strip()


def yes_or_no(answer: str) -> str:
    """Return `yes` or `no` for an answer, like LLaVA's `eval_pope.py`."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _other(label: str) -> str:
    return "no" if label == "yes" else "yes"


def _binary(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Compute binary metrics in percent from (answer, label) pairs; 0 where undefined."""
    hits = sum(said == true == "yes" for said, true in pairs)
    said_yes = sum(said == "yes" for said, _ in pairs)
    true_yes = sum(true == "yes" for _, true in pairs)
    precision, recall = hits / max(said_yes, 1), hits / max(true_yes, 1)
    values = {
        "accuracy": sum(said == true for said, true in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_ratio": said_yes / len(pairs),
    }
    return {key: 100 * value for key, value in values.items()}
