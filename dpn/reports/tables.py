"""Tables of a run, for terminals and pages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from dpn import benchmarks
from dpn.common.optional import optional
from dpn.common.table import Table
from dpn.metrics import by_level, group_by, kept_shares, route_shares
from dpn.metrics.answers import Row, metric_of

OVERVIEW = "Benchmarks"


def tables(metrics: Mapping[str, float], rows: Sequence[Row]) -> list[Table]:
    """All tables of a run; those about images only if prompts have some.

    A table that cannot be made has a sentence in its place.
    """
    groups = by_benchmark(rows)
    shown = [made(OVERVIEW, overview, metrics, groups)] if any(groups) else []
    for name, group in groups.items():
        shown += [replace(t, title=f"{name}: {t.title}" if name else t.title) for t in _of(group)]
    return [*shown, made("Numbers", numbers, metrics)]


def made(title: str, make: Callable[..., Table], *arguments: Any) -> Table:
    """The table that a function makes, or one with the reason why it failed."""
    failed: list[str] = []
    with optional(f"The table `{title}`", failed):
        return make(*arguments)
    return Table(title, (), (), *failed)


def by_benchmark(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each benchmark; held-out questions have an empty name."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get("benchmark") or "", []).append(row)
    return groups


def _of(rows: Sequence[Row]) -> list[Table]:
    """Tables of one benchmark."""
    shown = [made("Answers", results, rows)]
    seeing = [row for row in rows if row["base_rows"]]
    if seeing:
        shown.append(made("Visual rows that enter layer", rows_per_layer, seeing))
    if any(row["route"] for row in seeing):
        shown.append(made("Routes", routes, seeing))
    return shown


def overview(metrics: Mapping[str, float], groups: Mapping[str, Sequence[Row]]) -> Table:
    """Table of each benchmark's metric, as papers report it, and its visual work."""
    body = []
    for name, rows in groups.items():
        metric = benchmarks.resolve(name).headline if name else "accuracy"
        value = metrics.get(f"{name}/{metric}" if name else f"val/{metric}")
        shown = "not scored here" if value is None else f"{value:.2f}"
        named = metric if name else f"{metric} ({metric_of(rows)})"
        body.append((name or "held out", str(len(rows)), named, shown, _share(rows)))
    head = ("benchmark", "questions", "metric", "value", "visual MACs")
    note = "Values as papers report them; some benchmarks are scored by a server or a judge."
    return Table(OVERVIEW, head, tuple(body), note)


def results(rows: Sequence[Row]) -> Table:
    """Table of accuracy and visual work by family."""
    body = [
        (str(name), str(len(group)), _accuracy(group), _share(group))
        for name, group in _families(rows).items()
    ]
    official = any(row.get("benchmark") for row in rows)
    rule = "" if official else f" by the metric {metric_of(rows)} (data.metric)"
    note = f"Accuracy: mean score of an answer{rule}. Visual MACs: against no compression."
    return Table("Answers", ("family", "answers", "accuracy", "visual MACs"), tuple(body), note)


def rows_per_layer(rows: Sequence[Row]) -> Table:
    """Table of the mean visual rows that enter each layer, by family."""
    layers = len(rows[0]["rows"])
    body = [
        (str(name), *(f"{fmean(row['rows'][n] for row in group):.1f}" for n in range(layers)))
        for name, group in _families(rows).items()
    ]
    note = f"The vision tower gives {_mean(rows, 'base_rows'):.0f} tokens a prompt."
    head = ("family", *map(str, range(layers)))
    return Table("Visual rows that enter layer", head, tuple(body), note)


def routes(rows: Sequence[Row]) -> Table:
    """Table of the chosen experts at each routing layer, by family and difficulty."""
    layers = list(route_shares(rows))
    body = []
    for name, part in by_difficulty(rows).items():
        shares = route_shares(part)
        cells = [
            ", ".join(f"{e} {p:.2f}" for e, p in shares.get(layer, {}).items()) for layer in layers
        ]
        body.append((name, str(len(part)), f"{kept_shares(part)[-1]:.3f}", *cells))
    head = ("family, difficulty", "answers", "kept", *(f"layer {n}" for n in layers))
    note = "Share of the prompts by chosen option; kept: share of rows in the last layer."
    return Table("Routes", head, tuple(body), note)


def by_difficulty(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each family and, if it has several, of each level of difficulty."""
    groups: dict[str, list[Row]] = {}
    for family, group in _families(rows).items():
        levels = by_level(group) if family != "all" else {}
        groups |= {str(family): group, **{f"{family}, {n}": part for n, part in levels.items()}}
    return groups


def numbers(metrics: Mapping[str, float]) -> Table:
    """Table of the metrics that no other table shows."""
    shown = [(k, v) for k, v in metrics.items() if not k.startswith(("router/", "val/accuracy/"))]
    body = tuple((key, "-" if value is None else f"{value:.4g}") for key, value in shown)
    return Table("Numbers", ("metric", "value"), body)


def _families(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    families = group_by(rows, "family")
    return {**families, "all": list(rows)} if len(families) != 1 else families


def _accuracy(rows: Sequence[Row]) -> str:
    scores = [row["score"] for row in rows if row["score"] is not None]
    return f"{fmean(scores):.3f}" if scores else "-"


def _mean(rows: Sequence[Row], key: str) -> float:
    return fmean(row[key] for row in rows)


def _share(rows: Sequence[Row]) -> str:
    seeing = [row for row in rows if row["base_rows"]]
    return f"{_mean(seeing, 'visual_macs_ratio'):.3f}" if seeing else "-"
