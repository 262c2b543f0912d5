"""Metrics: from the lines of `rows.jsonl`, one per answer, to the numbers of `metrics.json`; and
measurements of time and memory.

Imports `common`.
"""

from dpn.metrics.answers import accuracies, by_level, group_by, score
from dpn.metrics.tokens import cost_metrics, kept_shares, route_shares

__all__ = [
    "accuracies",
    "by_level",
    "cost_metrics",
    "group_by",
    "kept_shares",
    "route_shares",
    "score",
]
