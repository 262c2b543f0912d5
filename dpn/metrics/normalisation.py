"""Normalisation of short answers: the steps of VQA's evaluator, and a rule for own data."""

import json
import re
import unicodedata
from collections.abc import Collection
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
#: Words for signs before a number, which `punctuation` would remove.
_SIGNS = {"-": "minus ", "\u2212": "minus ", "<": " less than ", ">": " more than "}
_SIGN = re.compile(r"((?<!\w)[-\u2212]|[<>]\s*)(?=\.?\d)")
#: Commas between digits that do not separate thousands.
_COMMA = re.compile(r"(?<=\d),(?=\d)(?!\d{3}(?!\d))")


def normal(text: str) -> str:
    """Normalise a short answer or reference of own data.

    Lower case; no articles; numbers up to ten as digits; no punctuation, see `punctuation`; the
    apostrophes of contractions where they belong. Unlike `vqa_eval`, this keeps what changes the
    meaning: the sign of a number (`-5` is not `5`), commas between numbers that are not thousands
    (`2,3` is not `23`), and a text of which nothing else would be left (the option `A`).
    """
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'")
    words = _words(_COMMA.sub(", ", _SIGN.sub(lambda sign: _SIGNS[sign[0].strip()], text)))
    kept = _joined([word for word in words if word not in _ARTICLES] or words)
    return kept or " ".join(text.lower().split())


def vqa_eval(answer: str) -> str:
    """Normalise an answer like `vqaEval.py` (github.com/GT-Vision-Lab/VQA), for VQAv2 and OKVQA."""
    return _joined([word for word in _words(answer) if word not in _ARTICLES])


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


def _words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation and with digits for small numbers."""
    bare = punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    return [_NUMBERS.get(word, word) for word in bare.lower().split()]


def _joined(words: Collection[str]) -> str:
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)
