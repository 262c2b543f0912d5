"""Accuracy of answers, overall and by group."""

import re
from collections.abc import Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

#: One line of `rows.jsonl` (an answer with its question, score and cost), or one measurement of
#: `dpn.bench`.
Row = dict[str, Any]


def score(answer: str, reference: str) -> float:
    """Score an answer: the share of digits that are correct at their place, where a missing or
    surplus digit is wrong; for a reference without digits, 1 for an exact match, else 0.
    """
    true = re.findall(r"\d", reference)
    if not true:
        return float(answer.strip() == reference.strip())
    said = re.findall(r"\d", answer)
    return fmean(a == b for a, b in zip_longest(said, true))


def accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean score of all answers, `val/accuracy`, and of each family,
    `val/accuracy/<family>`.
    """
    if not rows:
        return {}
    means = {"val/accuracy": fmean(row["score"] for row in rows)}
    for family, group in group_by(rows, "family").items():
        means[f"val/accuracy/{family}"] = fmean(row["score"] for row in group)
    return means


def question(row: Row) -> tuple[str, ...]:
    """Return the identity of a question, which is the same in all runs that answered it."""
    return tuple(str(row.get(name)) for name in ("benchmark", "id", "turn", "prompt"))


def group_by(rows: Sequence[Row], key: str) -> dict[Any, list[Row]]:
    """Group answers by a key, from the easiest group to the hardest; leave out those with None."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if row[key] is not None:
            groups.setdefault(row[key], []).append(row)

    def place(item: tuple[Any, list[Row]]) -> tuple[float, Any]:
        value, group = item
        return fmean(row.get("difficulty") or 0 for row in group), value

    return dict(sorted(groups.items(), key=place))


def by_level(rows: Sequence[Row], levels: int = 3) -> dict[str, list[Row]]:
    """Group answers by difficulty, with adjacent difficulties merged into at most `levels` groups;
    empty if there is only one difficulty.
    """
    groups = list(group_by(rows, "difficulty").items())
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
