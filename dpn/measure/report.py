"""Report of `dpn.bench`: a file of all measurements, a table and a figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from dpn.common.errors import FileError
from dpn.common.figure import drawn_to
from dpn.common.files import read_json, write_json, write_text
from dpn.common.table import Table, terminal
from dpn.measure.case import Figures
from dpn.measure.profiling import PARTS
from dpn.metrics.speed import Ratio
from dpn.runs.labels import labels

#: Keys that identify a measurement: one with the same values replaces it.
SAME = (
    *("model", "route", "batch_size", "text_columns", "new_tokens", "device", "dtype"),
    *("attention", "checkpoint_layers", "threads", "seed"),
)
#: Sizes that name a row, apart from its model.
SIZES = {"batch": "size", "text": "columns", "new": "tokens"}
TIMED = ("prefill", "decode", "answer", "train_step")
NOTE = (
    "FLOPs and cache are per sample, a decode is one token. Share (of FLOPs, of the cache), visual"
    " MACs (share of the decoder's work on visual tokens, as papers report it), time"
    " (median of ratios, 95 % interval) and memory are relative to the same model with router=none"
    " projector=mlp, run in turn in one process. time / share is 1 where the FLOPs saved give the"
    " same saving of time. With pairs=0, GiB are what a forward pass saves for its backward pass."
)


def publish(rows: Sequence[Figures], folder: Path) -> None:
    """Print figures and add them to `rows.json`, `table.md` and `speed.png` of a folder."""
    fresh = [_plain(row) for row in rows]
    console = terminal()
    for row in fresh:
        table([row], _title(row)).show(console)
        for part in TIMED:
            if shares := row.get(f"profile/{part}"):
                profile_table(shares, f"{_words(part)}, time by part").show(console)
    known = {_same(row): row for row in _known(folder / "rows.json")}
    every = list((known | {_same(row): row for row in fresh}).values())
    write_json(folder / "rows.json", every)
    write_text(folder / "table.md", table(every).markdown())
    if any(row["pairs"] for row in every):
        draw(every, folder / "speed.png")
    console.print(NOTE)
    console.print(f"All that was measured: {folder / 'table.md'}")


def _known(path: Path) -> list[Figures]:
    """The figures that a folder holds already.

    Raises:
        FileError: If the file is damaged.
    """
    rows = read_json(path) or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise FileError(f"{path} is damaged: it is not a list of measurements; remove it.")
    return rows


def table(rows: Sequence[Figures], title: str | None = None) -> Table:
    """A line for each part of each row; a title replaces the columns with the row's name."""
    label = _labels(rows)
    lines = [
        ({} if title else {"model": label[_name(row)]} | _sizes(row)) | _cells(row, part)
        for row in rows
        for part in TIMED
        if f"cost/{part}_flops" in row
    ]
    head = [key for key in lines[0] if any(line[key] for line in lines)]
    body = tuple(tuple(line[key] for key in head) for line in lines)
    return Table(title or "Speed", tuple(head), body, "" if title else NOTE)


def _cells(row: Figures, part: str) -> dict[str, str]:
    saved = part == "train_step" and "memory/saved_gib" in row
    held, ms = "memory/saved" if saved else f"memory/{part}", row.get(f"ms/{part}")
    cache = f"{_short(row['cost/kv_bytes'])}B, {row['cost/kv_bytes_ratio']:.3f}"
    return {
        "part": _words(part),
        "FLOPs": _short(row[f"cost/{part}_flops"]),
        "share": f"{row[f'cost/{part}_flops_ratio']:.3f}",
        "visual MACs": f"{row['cost/visual_macs_ratio']:.3f}" if part == "prefill" else "",
        "time": _ratio(row.get(f"time/{part}")),
        "time / share": _number(row.get(f"over_flops/{part}"), ".2f"),
        "time / HF": _ratio(row.get(f"hf/{part}")),
        "GiB": _number(row.get(f"{held}_gib"), ".3g"),
        "memory": _number(row.get(f"{held}_to_none"), ".2f"),
        "cache": cache if part == "prefill" else "",
        "ms [quartiles]": f"{ms[1]:.2f} [{ms[0]:.2f}, {ms[2]:.2f}]" if ms else "",
        "samples/s": _number(row.get(f"samples_per_s/{part}"), ".4g"),
        "tokens/s": _number(row.get(f"tokens_per_s/{part}"), ".4g"),
    }


def profile_table(shares: dict[str, dict[str, float]], title: str) -> Table:
    """Time of each part and contender, as a share of the time without compression."""
    lines = [
        (part, *(f"{took[part]:.3f}" for took in shares.values()))
        for part in PARTS
        if any(took[part] for took in shares.values())
    ]
    sums = ("all", *(f"{sum(took.values()):.3f}" for took in shares.values()))
    note = "Shares of the time of `none` under the profiler, which slows the host down."
    return Table(title, ("part", *shares), (*lines, sums), note)


def draw(rows: Sequence[Figures], path: Path) -> None:
    """Plot time against FLOPs, both relative to no compression."""
    rows = [row for row in rows if row["pairs"]]
    names = {name: fill(label, 90) for name, label in _labels(rows).items()}
    lines = sum(label.count("\n") + 1 for label in names.values())
    with drawn_to(path, (7, 4 + 0.2 * lines)) as figure:
        _plot(figure, rows, names)


def _plot(figure: Any, rows: Sequence[Figures], names: Mapping[str, str]) -> None:
    places = {name: number for number, name in enumerate(names)}
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", zorder=0)
    for row in rows:
        for part, marker in zip(TIMED, "osx^", strict=True):
            if took := row.get(f"time/{part}"):
                spread = [[took["ratio"] - took["low"]], [took["high"] - took["ratio"]]]
                axes.errorbar(
                    row[f"cost/{part}_flops_ratio"],
                    took["ratio"],
                    spread,
                    marker=marker,
                    color=f"C{places[_name(row)] % 10}",
                )
    for number, label in enumerate(names.values()):
        axes.plot([], [], color=f"C{number % 10}", label=label)
    marks = [axes.plot([], [], marker, color="0.3")[0] for marker in "osx^"]
    axes.legend(marks, map(_words, TIMED), loc="upper left")
    axes.set(xlabel="share of FLOPs", ylabel="share of time", xlim=(0, None), ylim=(0, None))
    figure.legend(loc="outside lower left", fontsize="small")


def _name(row: Figures) -> str:
    model = row.get("model", "")
    route = "" if row["route"] == "own" or "route=" in model else f"route={row['route']}"
    return f"{model} {route}".strip() or "default"


def _labels(rows: Sequence[Figures]) -> dict[str, str]:
    """A label for the name of each row, see `dpn.runs.labels`; a single name stays whole."""
    names = list(dict.fromkeys(_name(row) for row in rows))
    short = labels([name.split() for name in names]) if len(names) > 1 else names
    return dict(zip(names, short, strict=True))


def _sizes(row: Figures) -> dict[str, str]:
    return {key: str(row[f"{key}_{of}"]) for key, of in SIZES.items()}


def _title(row: Figures) -> str:
    return f"{_name(row)}: {', '.join(f'{key} {size}' for key, size in _sizes(row).items())}"


def _words(part: str) -> str:
    return part.replace("_", " ")


def _same(row: Figures) -> str:
    return str([row.get(key) for key in SAME] + [bool(row["pairs"])])


def _plain(row: Figures) -> Figures:
    """Figures as JSON; without times in ms on a CPU, where other work changes them."""
    on_gpu = any(key.startswith("ms/") for key in row)
    plain = {}
    for key, value in row.items():
        if isinstance(value, Ratio):
            value = {k: v for k, v in asdict(value).items() if on_gpu or not k.endswith("_ms")}
        plain[key] = value
    return plain


def _ratio(value: Figures | None) -> str:
    return f"{value['ratio']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else ""


def _short(value: float) -> str:
    """Four digits and a unit prefix."""
    exponent = max(0, min(4, int(math.log10(value)) // 3))
    return f"{value / 1000**exponent:.4g} {' kMGT'[exponent]}".strip()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
