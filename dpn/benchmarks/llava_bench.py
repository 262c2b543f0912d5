"""LLaVA-Bench (in the wild): open questions, judged against GPT-4 (arXiv 2304.08485)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dpn.benchmarks._files import (
    ID,
    Fields,
    check_same,
    check_unique,
    image_of,
    keyed,
    read_jsonl,
    read_object,
)
from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores
from dpn.common.files import write_rows
from dpn.data.batch import DataError

log = logging.getLogger(__name__)
#: Ratings of both models in a review without two numbers.
UNREAD = (-1.0, -1.0)
_HUB = "liuhaotian/llava-bench-in-the-wild of the Hugging Face hub"


class LLaVABench(Benchmark):
    """LLaVA-Bench: a judge rates each answer against GPT-4's, based on an image description.

    `judge.jsonl` contains the prompts for the judge as LLaVA's `eval_gpt_review_bench.py` writes
    them, with question_id, category and content; a missing answer is an empty one. Save the judge's
    replies beside it as `reviews.jsonl`, one line per question with question_id and content. The
    first line of content must be two numbers, GPT-4's rating and the model's; anything else counts
    as -1 for both, as in LLaVA, and is logged. Two numbers of which one is not from 0 to 10 are
    refused; the judge is asked for 1 to 10. New answers need new reviews.

    Metrics: score, the model's mean rating in percent of GPT-4's, overall and per category; a
    question without an answer is rated 0.
    """

    files = (
        OfficialFile("llava-bench-in-the-wild/questions.jsonl", _HUB),
        OfficialFile("llava-bench-in-the-wild/context.jsonl", _HUB),
        OfficialFile("llava-bench-in-the-wild/answers_gpt4.jsonl", _HUB),
        OfficialFile("llava-bench-in-the-wild/images", _HUB),
        OfficialFile(
            "llava-bench-in-the-wild/rule.json",
            "llava/eval/table of github.com/haotian-liu/LLaVA",
        ),
    )
    headline = "score"
    max_new_tokens = 1024

    def questions(self) -> list[Question]:
        path, rules = self._path("questions.jsonl"), self._rules()
        fields: Fields = {"question_id": ID, "image": str, "text": str, "category": str}
        rows = read_jsonl(path, fields)
        captions = self._texts("context.jsonl", "image", "caption")
        gpt4 = self._texts("answers_gpt4.jsonl", "question_id", "text")
        check_unique((row["question_id"] for row in rows), path)
        check_same((row["image"] for row in rows), captions, path, self._path("context.jsonl"))
        check_same(
            (row["question_id"] for row in rows), gpt4, path, self._path("answers_gpt4.jsonl")
        )
        questions = []
        for row in rows:
            if _rule(row["category"]) not in rules:
                raise DataError(
                    f"{path}: question {row['question_id']} has the category {row['category']!r};"
                    " rule.json has no rule for it; download both again."
                )
            image = image_of(self._path("images"), row["image"])
            meta = {"caption": captions[row["image"]]}
            name = row["question_id"]
            questions.append(
                Question(name, row["text"], (image,), gpt4[name], row["category"], meta)
            )
        return questions

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        path = folder / "reviews.jsonl"
        if not path.exists():
            return Scores({}, [None] * len(questions))
        rows = read_jsonl(path, {"question_id": ID, "content": str})
        reviews = keyed(((row["question_id"], row["content"]) for row in rows), path)
        pairs, unread = [], []
        for question, answer in zip(questions, answers, strict=True):
            if question.id not in reviews:
                raise DataError(f"{path} has no line for question {question.id}; judge it as well.")
            gpt4, model = found = ratings(reviews[question.id])
            if found == UNREAD:
                unread.append(question.id)
            elif not all(0 <= rating <= 10 for rating in found):  # NaN is not either
                raise DataError(
                    f"{path}: the review of question {question.id} begins with"
                    f" {reviews[question.id]!r:.60}; it must begin with two numbers from 1 to 10."
                    " Judge it again."
                )
            pairs.append((gpt4, 0.0 if answer is None else model))
        if unread:
            log.warning(
                "%s: %d reviews do not begin with two numbers and count as -1 for both models, as"
                " in LLaVA: questions %s.",
                path,
                len(unread),
                ", ".join(map(str, unread)),
            )
        groups = {"score": pairs}
        for question, pair in zip(questions, pairs, strict=True):
            groups.setdefault(f"score/{question.category}", []).append(pair)
        for name, values in groups.items():
            if sum(gpt4 for gpt4, _ in values) == 0:
                raise DataError(
                    f"{path}: the ratings of GPT-4's answers have a mean of 0 for `{name}`, so no"
                    " score can be relative to them; judge these questions again."
                )
        metrics = {name: _ratio(values) for name, values in groups.items()}
        return Scores(metrics, [min(max(model, 0.0), 10.0) / 10 for _, model in pairs])

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        """Write the prompts for the judge to judge.jsonl."""
        rules = self._rules()
        rows = []
        for question, answer in zip(questions, answers, strict=True):
            name = _rule(str(question.category))
            role, order = rules[name]["role"], rules[name]["prompt"]
            content = (
                f"[Context]\n{question.meta['caption']}\n\n[Question]\n{question.prompt}\n\n"
                f"[{role} 1]\n{question.reference}\n\n[End of {role} 1]\n\n"
                f"[{role} 2]\n{answer or ''}\n\n[End of {role} 2]\n\n[System]\n{order}\n\n"
            )
            rows.append({"question_id": question.id, "category": name, "content": content})
        write_rows(folder / "judge.jsonl", rows)

    def _path(self, name: str) -> Path:
        return self.root / "llava-bench-in-the-wild" / name

    def _texts(self, name: str, key: str, field: str) -> dict[int | str, str]:
        """Read one field of a file by the field `key`; lists of texts are joined as lines."""
        path = self._path(name)
        texts = []
        for number, row in enumerate(read_jsonl(path, {key: ID, field: (str, list)}), 1):
            lines = [row[field]] if isinstance(row[field], str) else row[field]
            if not all(isinstance(line, str) for line in lines):
                raise DataError(f"{path}, entry {number}: field {field!r} must hold texts.")
            texts.append((row[key], "\n".join(lines)))
        return keyed(texts, path, key)

    def _rules(self) -> dict[str, dict[str, Any]]:
        return read_object(self._path("rule.json"), {"role": str, "prompt": str})


def ratings(review: str) -> tuple[float, float]:
    """Return the two numbers in a review's first line, or (-1, -1) if it is anything else.

    Follows `eval_gpt_review_bench.py`: split at single spaces, so `8, 9` is not two numbers.
    """
    try:
        gpt4, model = review.split("\n")[0].replace(",", " ").split(" ")
        return float(gpt4), float(model)
    except ValueError:
        return UNREAD


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return 100 * fmean(pair[1] for pair in pairs) / fmean(pair[0] for pair in pairs)


def _rule(category: str) -> str:
    return f"llava_bench_{category}"
