"""Comparison of two models on the same questions."""

from collections.abc import Sequence
from itertools import takewhile

from dpn.common.table import Table
from dpn.common.text import shorten
from dpn.data.conversation import IMAGE
from dpn.metrics.answers import Row, by_question

SHOWN = 20


def differences(rows: Sequence[Row], others: Sequence[Row], other: str) -> list[Table]:
    """Tables of the questions that went better or worse than with another model.

    Args:
        rows: Scored answers of a model.
        others: Scored answers of the other model.
        other: Name of the other model.
    """
    theirs = by_question(others)
    both = ((row, theirs.get(key)) for key, row in by_question(rows).items())
    pairs = [(a, b) for a, b in both if b and None not in (a["score"], b["score"])]
    groups: dict[str, list[tuple[Row, Row]]] = {}
    for row, same in pairs:
        name = row.get("benchmark") or "all"
        family = row["family"]
        groups.setdefault(name if family is None else f"{name}, {family}", []).append((row, same))
    body = tuple((name, str(len(group)), *_counts(group)) for name, group in groups.items())
    head = ("questions", "asked of both", "better", "worse", "visual MACs here", "there")
    note = f"Better and worse: than {other}. Visual MACs: mean share over these questions."
    changed = [(a, b) for a, b in pairs if a["score"] != b["score"]]
    return [Table("Against another model", head, body, note), *_changed(changed)]


def _changed(pairs: Sequence[tuple[Row, Row]]) -> list[Table]:
    if not pairs:
        return []
    body = tuple(
        (
            str(row["id"]),
            shorten(row["prompt"].replace(IMAGE, ""), 60),
            *_where_they_part(row["reference"], row["answer"], same["answer"]),
            ", ".join(f"{layer}: {name}" for layer, name in row["route"].items()) or "-",
        )
        for row, same in pairs[:SHOWN]
    )
    head = ("id", "question", "right", "here", "there", "route here")
    note = f"{len(pairs)} in all." if len(pairs) > SHOWN else ""
    return [Table("Questions that went differently", head, body, note)]


def _counts(pairs: Sequence[tuple[Row, Row]]) -> tuple[str, ...]:
    better = sum(a["score"] > b["score"] for a, b in pairs)
    worse = sum(a["score"] < b["score"] for a, b in pairs)
    return str(better), str(worse), *(_share([pair[n] for pair in pairs]) for n in (0, 1))


def _share(rows: Sequence[Row]) -> str:
    shares = [row["visual_macs_ratio"] for row in rows if row["base_rows"]]
    return f"{sum(shares) / len(shares):.3f}" if shares else "-"


def _where_they_part(*values: object, letters: int = 24) -> list[str]:
    """Texts cut to start shortly before the first letter in which they differ."""
    texts = [str(value) for value in values]
    columns = zip(*texts, strict=False)
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    start = max(0, same - 6)
    return [shorten(("…" if start else "") + text[start:], letters) for text in texts]
