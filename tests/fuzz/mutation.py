"""Random changes of values and bytes, each determined by a `random.Random`."""

import copy
import math
from collections.abc import Callable
from random import Random
from typing import Any

#: Values that people, exports and damage put where another type belongs.
ODD = (
    *(None, True, False, 0, -1, 7, 2**63, 10**400, 0.5, 1e308, math.nan, -math.inf),
    *("", " ", "0", "easy", "[/b]", "a,b", "../x", "/", "\0", "\ud800", "\u2028", "é", "é"),
    *("${oc.env:HOME}", "=1+1", "<image>", "<script>", "x" * 5000, "-" * 300),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1, "a", None]),
)

#: Bytes that mark other encodings and formats, or end something early.
PIECES = (
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x85", b"\r"),
    *(b"\n", b"\n\n", b'"', b"\\", b"[", b"{", b"}", b"]", b",", b":", b"null", b"NaN", b"1e999"),
    *(b"[" * 3000, b"9" * 5000, b"&a [*a]", b"<?xml?>", b"PAR1", b"PK\x03\x04"),
)


def mutate_value(rng: Random, value: Any, times: int = 1) -> Any:
    """A copy of a value of lists and dictionaries with random changes."""
    value = copy.deepcopy(value)
    for _ in range(times):
        box = [value]
        holder, key = rng.choice(_places(box))
        rng.choice(_CHANGES)(rng, holder, key)
        value = box[0] if box else None
    return value


def mutate_bytes(rng: Random, data: bytes, times: int = 1) -> bytes:
    """Bytes with random changes: flips, cuts, and pieces that are put in, doubled or zeroed."""
    for _ in range(times):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 4, 64, len(data))))
        piece = data[start:end]
        match rng.randrange(6):
            case 0 if piece:
                flipped = bytes([piece[0] ^ 1 << rng.randrange(8)])
                data = data[:start] + flipped + data[start + 1 :]
            case 1:
                data = data[:start]
            case 2:
                data = data[:start] + data[end:]
            case 3:
                data = data[:start] + b"\0" * len(piece) + data[end:]
            case 4:
                data = data[:start] + piece + data[start:]
            case _:
                data = data[:start] + rng.choice(PIECES) + data[start:]
    return data


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each container inside a value with each of its keys."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            found += [(value, key), *_places(item)]
    return found


def _replace(rng: Random, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(rng.choice(ODD))


def _delete(rng: Random, holder: Any, key: Any) -> None:
    del holder[key]


def _wrap(rng: Random, holder: Any, key: Any) -> None:
    holder[key] = [holder[key]] if rng.random() < 0.5 else {"value": holder[key]}


def _as_text(rng: Random, holder: Any, key: Any) -> None:
    holder[key] = str(holder[key])


def _add(rng: Random, holder: Any, key: Any) -> None:
    """Put the value, or an odd one, at another place of the same container."""
    item = copy.deepcopy(rng.choice((holder[key], rng.choice(ODD))))
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), item)
    else:
        holder[rng.choice(("x", "name", "video", "system", f"{key} "))] = item


def _edit_text(rng: Random, holder: Any, key: Any) -> None:
    """Change one place of a text; other values are replaced."""
    text = holder[key]
    if not isinstance(text, str) or not text:
        return _replace(rng, holder, key)
    place, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    odd = rng.choice([item for item in ODD if isinstance(item, str)])
    holder[key] = text[:place] + odd + text[rng.choice((place, end)) :]


_CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (
    *(_replace, _replace, _delete, _wrap, _as_text, _add, _edit_text, _edit_text),
)
