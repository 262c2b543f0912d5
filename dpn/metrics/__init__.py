"""Metrics: from the lines of `rows.jsonl`, one per answer, to the numbers of `metrics.json`; and
measurements of time and memory.

Imports `common`.
"""

from dpn.common.registry import Registry
from dpn.metrics.answers import accuracies, by_level, group_by
from dpn.metrics.rules.base import Rule
from dpn.metrics.tokens import cost_metrics, kept_shares, route_shares

#: Rule for own data that names none in `data.metric`.
DEFAULT = "normalised"
_registry = Registry("dpn.metrics.rules", Rule, group="dpn.metrics")
names, resolve, build = _registry.names, _registry.resolve, _registry.build


def score(answer: str, reference: str, metric: str = DEFAULT) -> float:
    """Score an answer from 0 to 1 by a rule of `dpn.metrics.rules`."""
    return build(metric).score(answer, reference)


__all__ = [
    "DEFAULT",
    "Rule",
    "accuracies",
    "build",
    "by_level",
    "cost_metrics",
    "group_by",
    "kept_shares",
    "names",
    "resolve",
    "route_shares",
    "score",
]
