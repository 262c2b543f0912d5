"""Normalisation of answers as in VQA's evaluators: two rules built from the same steps."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

_MARKS = frozenset(';/[]"{}()=+\\_-><@`,?!')
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset(("a", "an", "the"))
#: The official list, unchanged: some entries map to themselves, one loses its apostrophe.
_CONTRACTIONS: dict[str, str] = json.loads(
    Path(__file__).with_name("contractions.json").read_text(encoding="utf-8")
)


def evalai(answer: str) -> str:
    """Normalise an answer like EvalAI's processor (from MMF), for TextVQA and uploads."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_eval(text)


def uploaded(answers: Sequence[str | None]) -> list[str | None]:
    """Normalise answers for upload to the servers of VQAv2 and VizWiz."""
    return [None if answer is None else evalai(answer) for answer in answers]


def vqa_eval(answer: str) -> str:
    """Normalise an answer like `vqaEval.py` (github.com/GT-Vision-Lab/VQA), for VQAv2 and OKVQA."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = (_NUMBERS.get(word, word) for word in punctuation(text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def punctuation(text: str) -> str:
    """Remove punctuation marks; a step of both rules.

    A mark that is next to a space anywhere in the text is removed, any other one becomes a space;
    all are removed if there is a comma between digits. Then full stops that no digit follows are
    removed, at most 32 of them: the evaluators pass the flag `re.UNICODE` where `re.sub` takes a
    count.
    """
    thousands = re.search(r"\d,\d", text) is not None
    left = text
    for mark in _MARKS.intersection(text):
        goes = thousands or f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if goes else " ")
    return re.sub(r"\.(?!\d)", "", left, count=32)
