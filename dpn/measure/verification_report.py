"""What `dpn.verify` prints: a table, a verdict in words, and figures for programs."""

import math
from typing import Any

from dpn.common.table import Table
from dpn.measure.agreement import Agreement, Selection
from dpn.measure.verification import Verification


def table(found: Verification) -> Table:
    """Return a table of what was compared."""
    lines = [_line(part) for part in (found.none, found.method) if part]
    if chosen := found.selection:
        lines.append(
            (
                "kept columns",
                "stock attention, fp32",
                f"{max(chosen.excess, 0):.1e}",
                f"{chosen.allowed:.1e}",
                f"{chosen.same} of {chosen.kept} columns",
            )
        )
    head = ("compared", "with", "difference", "allowed", "equal")
    return Table("Agreement with the stock model", head, tuple(lines), note(found))


def _line(part: Agreement) -> tuple[str, ...]:
    return (
        part.name,
        "stock model" if part.effect is None else "stock, same columns hidden",
        f"{part.difference:.1e}",
        f"{part.allowed:.1e}",
        f"{part.tokens} of {part.generated} tokens",
    )


def note(found: Verification) -> str:
    """Return what the numbers of the table mean for a reader."""
    words = [
        "Largest differences of logits, in the columns of the prompt and in each step of greedy"
        " generation; allowed is what rounding explains in the dtype of the weights."
    ]
    if found.method and found.method.effect is not None:
        words.append(f"The method itself moves the last logits by {found.method.effect:.1e}.")
        if 0 < found.method.effect <= 3 * found.method.allowed:
            words.append(
                "That is hardly more than rounding, so the comparison says little;"
                " model.dtype=float32 says more."
            )
    return " ".join(words)


def verdict(found: Verification) -> str:
    """Return the result in a sentence."""
    parts = [_agrees(found.none)]
    if found.method is None:
        parts.append(
            f"{found.title} has no reference, because {found.reason}: only router=none was checked"
        )
    else:
        parts.append(_agrees(found.method))
    if found.selection is not None:
        parts.append(_chosen(found.selection))
    cost = f"{found.share:.2f} of its visual MACs"
    cost += f" and {found.flops:.2f} of the text model's prefill FLOPs"
    if found.time is None:
        parts.append(f"prefill takes {cost}")
    else:
        parts.append(f"prefill takes {found.time.ratio:.2f} of the stock model's time at {cost}")
    return f"{'; '.join(parts)}."


def _agrees(part: Agreement) -> str:
    tokens = f"{part.tokens} of {part.generated} tokens"
    if part.holds and part.tokens < part.generated:
        tokens += ", then two tokens that are equally likely up to rounding"
    if part.holds:
        return f"{part.name} equals the {part.reference} ({_size(part.difference)}, {tokens})"
    allowed = f"{part.allowed:.1e} is allowed"
    return (
        f"{part.name} DIFFERS from the {part.reference}"
        f" ({_size(part.difference)}, {allowed}; {tokens})"
    )


def _size(difference: float) -> str:
    if not math.isfinite(difference):
        return "the logits are not finite"
    return f"largest difference {f'{difference:.1e}' if difference else '0'}"


def _chosen(chosen: Selection) -> str:
    columns = f"{chosen.same} of {chosen.kept} columns"
    if chosen.holds:
        return f"it keeps the columns that the stock model attends to most ({columns})"
    return (
        f"it does NOT keep the columns that the stock model attends to most ({columns}; a dropped"
        f" one gets {chosen.excess:.1e} more attention than a kept one)"
    )


def figures(found: Verification) -> dict[str, Any]:
    """Return flat figures for programs; numbers that are not finite are None."""
    values: dict[str, Any] = {"method": found.title, "agrees": found.holds}
    for key, part in (("none", found.none), ("method", found.method)):
        if part is not None:
            values |= {
                f"{key}/difference": part.difference,
                f"{key}/allowed": part.allowed,
                f"{key}/tokens": part.tokens,
                f"{key}/generated": part.generated,
            }
    if found.method is not None:
        values["method/effect"] = found.method.effect
    if chosen := found.selection:
        values |= {"choice/same": chosen.same, "choice/kept": chosen.kept}
        values["choice/excess"] = chosen.excess
    values |= {
        "rows": list(found.rows),
        "cost/visual_macs_ratio": found.share,
        "cost/prefill_flops_ratio": found.flops,
    }
    if took := found.time:
        values |= {"time/prefill": took.ratio, "time/low": took.low, "time/high": took.high}
        values["time/pairs"] = took.pairs
    values["verdict"] = verdict(found)
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
