"""How good answers are."""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]


def score(answer: str, reference: str) -> float:
    """Share of the digits that are right in their place; without digits, whether all is right.

    A missing or a surplus digit is wrong.
    """
    true = re.findall(r"\d", reference)
    if not true:
        return float(answer.strip() == reference.strip())
    said = re.findall(r"\d", answer)
    return fmean(a == b for a, b in zip_longest(said, true))


def accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """Mean score of all answers, `val/accuracy`, and of each family's, `val/accuracy/<family>`."""
    if not rows:
        return {}
    means = {"val/accuracy": fmean(row["score"] for row in rows)}
    for family, group in by(rows, "family").items():
        means[f"val/accuracy/{family}"] = fmean(row["score"] for row in group)
    return means


def question(row: Row) -> tuple[str, ...]:
    """What tells a question from others, whoever answers it."""
    return tuple(str(row.get(name)) for name in ("benchmark", "id", "turn", "prompt"))


def by(rows: Sequence[Row], key: str) -> dict[Any, list[Row]]:
    """Rows grouped by their value of a key, the easiest group first; None is left out."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if row[key] is not None:
            groups.setdefault(row[key], []).append(row)

    def place(item: tuple[Any, list[Row]]) -> tuple[float, Any]:
        value, group = item
        return fmean(row.get("difficulty") or 0 for row in group), value

    return dict(sorted(groups.items(), key=place))


def by_level(rows: Sequence[Row], levels: int = 3) -> dict[str, list[Row]]:
    """Rows grouped by difficulty, neighbouring ones together; empty if there is only one."""
    groups = list(by(rows, "difficulty").items())
    if len(groups) < 2:
        return {}
    size = -(-len(groups) // levels)
    chunks = [groups[start : start + size] for start in range(0, len(groups), size)]
    return {
        "-".join(dict.fromkeys(str(level) for level, _ in (chunk[0], chunk[-1]))): [
            row for _, group in chunk for row in group
        ]
        for chunk in chunks
    }
