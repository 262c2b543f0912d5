"""ScienceQA: school science questions, about half of them with an image (arXiv 2209.09513)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dpn.benchmarks._files import (
    check_same,
    check_unique,
    checked,
    image_of,
    read_array,
    read_json,
    read_object,
)
from dpn.benchmarks.base import (
    EVAL_ZIP,
    LETTER,
    Benchmark,
    OfficialFile,
    Question,
    Scores,
    by_category,
    percent,
)
from dpn.common.errors import SettingError
from dpn.data.batch import DataError

Parse = Literal["llava", "llava_hr"]
LETTERS = "ABCDE"
_REPOSITORY = "data/scienceqa of github.com/lupantech/ScienceQA"


class ScienceQA(Benchmark):
    """ScienceQA's test split; some questions have no image.

    An answer is a letter, starts with a letter, or contains `The answer is X.` exactly once. In
    LLaVA, a letter at the start must be followed by `. `; in LLaVA-HR, the answer must only have
    three characters or more.

    Metrics: accuracy overall, of questions with an image and of those without; papers report
    accuracy/image.

    Args:
        root: Root folder of all benchmarks, see `Benchmark`.
        parse: Rule for parsing answers.
    """

    files = (
        OfficialFile("scienceqa/llava_test_CQM-A.json", EVAL_ZIP),
        OfficialFile("scienceqa/pid_splits.json", _REPOSITORY),
        OfficialFile("scienceqa/problems.json", _REPOSITORY),
        OfficialFile("scienceqa/images/test", f"test images, see {_REPOSITORY}"),
    )
    headline = "accuracy/image"
    max_new_tokens = 1024

    def __init__(self, root: Path, parse: Parse = "llava"):
        if parse not in get_args(Parse):
            raise SettingError(
                f"parse={parse!r} is unknown; choose {' or '.join(get_args(Parse))}."
            )
        super().__init__(root)
        self.parse = parse

    def questions(self) -> list[Question]:
        path = self.root / "scienceqa" / "llava_test_CQM-A.json"
        rows = read_array(path, {"id": str, "conversations": list})
        answers = self._answers()
        check_unique((row["id"] for row in rows), path)
        check_same((row["id"] for row in rows), answers, path, path.with_name("pid_splits.json"))
        return [
            self._question(row, answers[row["id"]], path, number)
            for number, row in enumerate(rows, 1)
        ]

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        right = [
            float(answer is not None and letter(answer, self.parse) == question.reference)
            for question, answer in zip(questions, answers, strict=True)
        ]
        groups = by_category(questions, right)
        metrics = {"accuracy": percent(right)}
        for name in ("image", "text"):
            metrics[f"accuracy/{name}"] = percent(groups.get(name, []))
        return Scores(metrics, list(right))

    def _answers(self) -> dict[str, str]:
        """Return the correct letters of the test split by id."""
        path = self.root / "scienceqa" / "problems.json"
        problems = read_object(path, {"choices": list, "answer": int})
        splits = path.with_name("pid_splits.json")
        ids = checked(read_json(splits), {"test": list}, splits, "'test'", "entry")["test"]
        answers = {}
        for name in ids:
            if not isinstance(name, str) or name not in problems:
                raise DataError(f"{path} lacks problem {name!r} of {splits}; download both again.")
            options = LETTERS[: len(problems[name]["choices"])]
            answer = problems[name]["answer"]
            if not 0 <= answer < len(options):
                raise DataError(
                    f"{path}, entry {name!r}: field 'answer' is {answer}; there are {len(options)}"
                    " choices."
                )
            answers[name] = options[answer]
        return answers

    def _question(self, row: dict[str, Any], answer: str, path: Path, number: int) -> Question:
        turn = checked(
            next(iter(row["conversations"]), None), {"value": str}, path, number, "entry"
        )
        prompt = turn["value"].replace("<image>", "").strip() + LETTER
        if "image" not in row:
            return Question(row["id"], prompt, (), answer, "text")
        checked(row, {"image": str}, path, number, "entry")
        image = image_of(self.root / "scienceqa" / "images" / "test", row["image"])
        return Question(row["id"], prompt, (image,), answer, "image")


def letter(answer: str, parse: Parse = "llava") -> str | None:
    """Return the option that an answer names, like `eval_science_qa.py`."""
    if answer in tuple(LETTERS):
        return answer
    mark = ". " if parse == "llava" else ""
    if len(answer) >= 3 and answer[0] in LETTERS and answer.startswith(mark, 1):
        return answer[0]
    said = re.findall(r"The answer is ([A-Z]).", answer)  # the dot matches any character
    return said[0] if len(said) == 1 else None
