"""Parsing of answers as in MMMU's `eval_utils.py`."""

import re
from collections.abc import Mapping

#: Words that precede an answer in a line; in the last line also `=`.
_SIGNS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,000
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.5e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 1, 1.5, .5
)


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer means, or None.

    A letter in brackets takes precedence over a letter between spaces; in answers of more than five
    words, the text of an option counts as well. If there are several, the last one counts.

    Args:
        answer: Generated answer.
        options: Option texts by letter.
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    for form in ("({})", " {} "):
        if letter := _last(answer, {key: form.format(key) for key in options}):
            return letter
    if len(answer.split()) > 5:
        return _last(answer.lower(), {key: text.lower() for key, text in options.items()})
    return None


def is_right(answer: str, truths: list[str]) -> bool:
    """Return whether the answer to an open question contains a correct answer.

    A text is correct if it contains a reference text, a number if it equals a reference number.
    """
    right = [value for truth in truths for value in _values(truth)]
    texts = [value for value in right if isinstance(value, str)]
    for value in _said(answer):
        if any(text in value for text in texts) if isinstance(value, str) else value in right:
            return True
    return False


def _last(text: str, words: Mapping[str, str]) -> str | None:
    """Return the key of the word that appears last in a text, or None."""
    places = {key: text.rfind(word) for key, word in words.items() if word in text}
    return max(places, key=places.__getitem__, default=None)


def _said(answer: str) -> list[str | float]:
    """Return candidates for the answer: ends of lines, and all numbers in them."""
    tails = _tails(answer)
    numbers = [found for tail in tails for form in _NUMBERS for found in form.findall(tail)]
    return [value for text in tails + numbers for value in _values(text)]


def _tails(answer: str) -> list[str]:
    """Return each line's shortest text after a sign; the whole answer if there is none."""
    answer = answer.strip().strip(".").lower()
    # The original also splits sentences at capital letters, but after lower() there are none.
    lines = answer.split("\n")
    tails = []
    for number, line in enumerate(lines, 1):
        tail = ""
        for sign in _SIGNS if number < len(lines) else (*_SIGNS, "="):
            if sign in line:
                end = line.rpartition(sign)[2].strip()
                if not tail or len(end) < len(tail):
                    tail = end
        if tail and tail not in list(":,.!?;'"):
            tails.append(tail)
    return tails or [answer]


def _values(text: str) -> list[str | float]:
    """Return a number rounded to two digits, or lower-case text; a single letter gets a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
