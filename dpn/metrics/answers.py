"""Accuracy of answers, overall and by group."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from dpn.common import labels

#: One line of `rows.jsonl` (an answer with its question, score and cost), or one measurement of
#: `dpn.bench`.
Row = dict[str, Any]
#: Largest number of difficulties in words that are shown as groups.
WORDS = 12


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


#: Rule of held-out answers that name none: they are from before there was a choice.
FORMER = "digits"


def metric_of(rows: Iterable[Row]) -> str:
    """Return the name of the rule that scored held-out answers, see `dpn.metrics.rules`."""
    return next((str(row.get("metric") or FORMER) for row in rows), FORMER)


def by_question(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """Return answers by question, whose key is the same in all runs that answered it.

    Ids and words may repeat, so the number of the row in its file is part of the key, and so is the
    number of earlier rows that agree in all of these.
    """
    names = ("benchmark", "row", "id", "turn", "prompt")
    found: dict[tuple[str, ...], Row] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        key = tuple(str(row.get(name)) for name in names)
        found[*key, str(seen[key])] = row
        seen[key] += 1
    return found


def group_by(rows: Sequence[Row], key: str) -> dict[Any, list[Row]]:
    """Group answers by family or difficulty, from the easiest group to the hardest; leave out those
    without. The names of the groups are those of `dpn.common.labels`.
    """
    read = labels.difficulty if key == "difficulty" else labels.family
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if (name := read(row.get(key))) is not None:
            groups.setdefault(name, []).append(row)

    def place(name: Any) -> tuple[Any, ...]:
        levels = [labels.order(labels.difficulty(row.get("difficulty"))) for row in groups[name]]
        kinds, ranks, _ = zip(*levels, strict=True)
        return fmean(kinds), fmean(ranks), labels.order(labels.difficulty(name))

    return {name: groups[name] for name in sorted(groups, key=place)}


def by_level(rows: Sequence[Row], levels: int = 3) -> dict[str, list[Row]]:
    """Group answers by difficulty; empty if there is only one difficulty.

    Adjacent numbers are merged into at most `levels` groups. Words such as `easy` and `hard` are
    groups of their own; if there are more than `WORDS` of them, they form no groups.
    """
    groups = list(group_by(rows, "difficulty").items())
    if len(groups) < 2:
        return {}
    size = -(-len(groups) // levels)
    if any(isinstance(level, str) for level, _ in groups):
        if len(groups) > WORDS:
            return {}
        size = 1
    chunks = [groups[start : start + size] for start in range(0, len(groups), size)]
    return {
        "-".join(dict.fromkeys(str(level) for level, _ in (chunk[0], chunk[-1]))): [
            row for _, group in chunk for row in group
        ]
        for chunk in chunks
    }
