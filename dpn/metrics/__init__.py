"""From rows, one per answer, to the numbers of metrics.json."""

from dpn.metrics.answers import accuracies, by, by_level, score
from dpn.metrics.tokens import cost_metrics, kept_shares, route_shares

__all__ = ["accuracies", "by", "by_level", "cost_metrics", "kept_shares", "route_shares", "score"]
