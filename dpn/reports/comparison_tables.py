"""The tables of a comparison of runs."""

from collections.abc import Mapping, Sequence
from math import floor, log10
from statistics import fmean

from dpn.common.table import Table
from dpn.metrics.statistics import Difference, spread
from dpn.reports.charts import kept_by_layer
from dpn.reports.points import ACCURACY, METRIC, SHARE, Point, baseline_of, best, difference
from dpn.reports.runs import Run

#: Tolerance of the share that was reached above a budget.
SLACK = 0.02
_COSTS = {
    "prefill GFLOPs": "cost/prefill_flops",
    "prefill ms": "time/prefill_ms",
    "ms a token": "time/new_token_ms",
    "step ms": "time/step_ms",
    "training s": "time/train_s",
}


def methods(points: Sequence[Point]) -> Table:
    """Table of accuracies and their differences to the baseline."""
    body = []
    for point in points:
        baseline = baseline_of(point, points)
        claim = _claim(point, baseline) if baseline else ("-", "-", "-")
        shown = (_spread(point, ACCURACY), _spread(point, SHARE))
        body.append((point.name, str(len(point.runs)), *shown, *claim))
    head = ("method", "seeds", "accuracy", "visual MACs", "difference", "claim", "baseline")
    rule = points[0].settings[METRIC] if points else ""
    note = (
        f"Accuracy: mean score of held-out answers by the metric {rule} (data.metric). Mean ±"
        " standard deviation over seeds. Difference: accuracy minus that of the baseline, the"
        " run of router=none with the most similar other settings, on the same questions and seeds,"
        " with its 95 % interval; better and worse are claimed only if that excludes 0. Intervals"
        " are not corrected for their number: of twenty true zeros, about one is missed. With one"
        " seed, an interval covers other questions, not other seeds."
    )
    if not any(baseline_of(point, points) for point in points):
        note += " No run can be compared with a run of router=none; add one."
    return Table("Methods", head, tuple(body), note)


def costs(points: Sequence[Point]) -> Table:
    """Table of FLOPs and times."""
    body = tuple((p.name, *(_cost(p, metric) for metric in _COSTS.values())) for p in points)
    note = (
        "Mean ± standard deviation over seeds. Times are measured while answering and training, so"
        " they compare only on one machine that does nothing else."
    )
    return Table("Costs", ("method", *_COSTS), body, note)


def budgets(points: Sequence[Point]) -> Table:
    """Table of the most accurate method at each budget, and its lead over the next one."""
    asked = {float(keep) for point in points for keep in point.keep.split()} | {1.0}
    body = []
    for budget in sorted(asked):
        first = best(points, budget + SLACK)
        if first is None:
            body.append((f"{budget:g}", "none reaches it", *["-"] * 5))
            continue
        others = [point for point in points if point is not first]
        second = best(others, budget + SLACK)
        lead = _claim(first, second)[:2] if second else ("-", "-")
        shown = (_spread(first, ACCURACY), _spread(first, SHARE))
        body.append((f"{budget:g}", first.name, *shown, second.name if second else "-", *lead))
    head = ("budget", "best", "accuracy", "visual MACs", "next best", "difference", "claim")
    note = f"Among all methods whose share of visual MACs is at most the budget + {SLACK:g}."
    return Table("Best per budget", head, tuple(body), note)


def families(points: Sequence[Point]) -> Table:
    """Table of accuracies by family of questions."""
    names = dict.fromkeys(n for p in points for run in p.runs for n in run.metrics)
    metrics = [name for name in names if name.startswith(f"{ACCURACY}/")]
    body = tuple((p.name, *(_spread(p, metric) for metric in metrics)) for p in points)
    head = ("method", *(name.removeprefix(f"{ACCURACY}/") for name in metrics))
    return Table("Accuracy by family", head, body, "Mean ± standard deviation over seeds.")


def layers(points: Sequence[Point]) -> Table:
    """Table of the visual rows that enter each layer."""
    kept = {point.name: kept_by_layer(point) for point in points}
    most = max(map(len, kept.values()), default=0)
    body = tuple(
        (name, *(f"{share:.3f}" for share in shares), *["-"] * (most - len(shares)))
        for name, shares in kept.items()
    )
    note = "Share of the vision tower's uncompressed tokens that enters the layer."
    return Table("Visual rows kept by layer", ("method", *map(str, range(most))), body, note)


def settings(points: Sequence[Point]) -> Table:
    """What differs between the configurations."""
    keys = sorted({key for point in points for key in point.settings})
    lines = ((key, *(point.settings.get(key, "-") for point in points)) for key in keys)
    body = tuple(line for line in lines if len({*line[1:]}) > 1)
    note = "Settings with the same value everywhere, seeds and places are left out."
    return Table("Settings that differ", ("setting", *(p.name for p in points)), body, note)


def left_out(runs: Sequence[Run]) -> Table:
    """Table of runs that are not compared, and why."""
    body = []
    for run in runs:
        log = run.folder / "log.txt"
        traceback = str(log) if run.outcome in ("failed", "interrupted") and log.exists() else "-"
        body.append((str(run.folder), run.outcome, run.problem, traceback))
    head = ("run", "outcome", "why", "traceback")
    return Table("Runs that are not compared", head, tuple(body))


def summary(runs: Sequence[Run], points: Sequence[Point]) -> Mapping[str, int]:
    """Numbers of runs, by outcome, and of methods."""
    counts = {"runs": len(runs), "compared": sum(len(p.runs) for p in points)}
    for run in runs:
        if run.outcome != "finished":
            counts[run.outcome] = counts.get(run.outcome, 0) + 1
    return counts | {"methods": len({point.method for point in points})}


def _claim(point: Point, other: Point) -> tuple[str, str, str]:
    """Difference, claim, and the name of the other point."""
    found = difference(point, other)
    if found is None:
        return "-", "no seed and question in common", other.name
    few = f" ({found.seeds} of {len(point.runs)} seeds)" if found.seeds < len(point.runs) else ""
    return _interval(found), found.verdict + few, other.name


def _interval(found: Difference) -> str:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _spread(point: Point, metric: str) -> str:
    return spread(values) if (values := point.values(metric)) else "-"


def _cost(point: Point, metric: str) -> str:
    """Mean and spread, with three digits of the mean."""
    unit = 1e9 if metric.endswith("flops") else 1.0
    values = [value / unit for value in point.values(metric)]
    if not values:
        return "-"
    return spread(values, f".{max(0, 2 - floor(log10(max(fmean(values), 1e-3))))}f")
