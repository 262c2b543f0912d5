"""Names of groups of questions, from any `id`, `family` and `difficulty` of a user's file.

Rows are read through these functions, so that no value of a file can break a table, a key of a
metric or a JSON file later. Applying one twice changes nothing, so they also read older files.
"""

import json
import math
from typing import Any

from dpn.common.text import one_line

#: Words for difficulties, from easy to hard; other words follow in the order of the alphabet.
SCALE = (
    *("very easy", "easy", "simple", "low", "medium", "moderate", "normal"),
    *("high", "hard", "difficult", "very hard"),
)
#: Numbers of a larger size are names: their sum could be infinite.
_LARGEST = 1e15


def text_of(value: Any) -> str:
    """Return any value of a JSON file as one line of text that can be written as UTF-8.

    Text stays as it is, other values are written as JSON; lone surrogates become escapes.
    """
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except (RecursionError, TypeError, ValueError):
            value = f"a {type(value).__name__}"
    return one_line(value.encode("utf-8", "backslashreplace").decode())


def family(value: Any) -> str | None:
    """Return the name of a family; None for null, NaN and empty text."""
    return None if _is_nothing(value) else text_of(value) or None


def difficulty(value: Any) -> int | float | str | None:
    """Return a difficulty: a number, also for text that is one, or a word; None as for a family."""
    if _is_nothing(value):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if abs(value) <= _LARGEST else text_of(value)
    word = text_of(value)
    for number in (int, float):
        try:
            found = number(word)
        except (ValueError, OverflowError):
            continue
        if abs(found) <= _LARGEST:  # not so for NaN
            return found
    return word or None


def order(value: int | float | str | None) -> tuple[int, float, str]:
    """Return a key that sorts difficulties: numbers (None is 0), then words from easy to hard."""
    if not isinstance(value, str):
        return (0, value or 0, "")
    word = value.lower().replace("_", " ")
    return (1, SCALE.index(word) if word in SCALE else len(SCALE), value)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
