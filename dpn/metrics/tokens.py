"""Visual work and routes of answers."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from dpn.metrics.answers import Row


def cost_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Return means over the prompts: prefill FLOPs, share of visual MACs, share of visual rows at
    each layer.

    `cost/visual_macs_ratio` and `router/kept/<layer>` are means over prompts with images, relative
    to the vision tower's uncompressed tokens; `router/kept/<layer>` counts the rows that enter the
    layer.
    """
    if not rows:
        return {}
    metrics = {"cost/prefill_flops": fmean(row["prefill_flops"] for row in rows)}
    seeing = [row for row in rows if row["base_rows"]]
    if seeing:
        metrics["cost/visual_macs_ratio"] = fmean(row["visual_macs_ratio"] for row in seeing)
        for layer, kept in enumerate(kept_shares(seeing)):
            metrics[f"router/kept/{layer}"] = kept
    return metrics


def kept_shares(rows: Sequence[Row]) -> list[float]:
    """Return, for each layer, the mean share of the tower's tokens that enter it, given answers to
    prompts with images.
    """
    layers = len(rows[0]["rows"])
    return [fmean(row["rows"][n] / row["base_rows"] for row in rows) for n in range(layers)]


def route_shares(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the share of prompts that chose each expert, for each layer with a choice."""
    chosen: dict[str, Counter[str]] = {}
    for row in rows:
        for layer, expert in row["route"].items():
            chosen.setdefault(layer, Counter())[expert] += 1
    return {
        layer: {expert: n / counts.total() for expert, n in sorted(counts.items())}
        for layer, counts in sorted(chosen.items(), key=lambda item: int(item[0]))
    }
