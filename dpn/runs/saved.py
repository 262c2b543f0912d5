"""Read the files of a run folder, whatever state they are in.

All commands read run folders with these functions. Each returns values of the types it promises, or
raises `FileError` with the file and what is wrong with it; a missing file is `FileNotFoundError`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpn.common.errors import FileError
from dpn.common.files import read_json, read_rows, read_text
from dpn.common.text import one_line, shorten

SETTINGS, STATUS, METRICS, ROWS = "config.yaml", "status.json", "metrics.json", "rows.jsonl"
CURVES = "curves.jsonl"
MOST_SETTINGS = 2**18
"""Largest size of a config.yaml in bytes."""
MOST_VALUES = 50_000
"""Largest number of values in a config.yaml, counted as often as aliases repeat them."""
_NUMBER = int | float | None
#: Types of the fields of a status.json; all may be missing, and others are not read.
_STATUS: dict[str, Any] = {
    **dict.fromkeys(("status", "host", "identity", "command"), str),
    **dict.fromkeys(("error", "commit", "applied_to"), str | None),
    **dict.fromkeys(("pid", "attempt"), int),
    **dict.fromkeys(("heartbeat", "started", "ended"), _NUMBER),
    **{"overrides": list, "unscored": list, "not_made": list, "missing": dict, "trained": dict},
}
#: Types of the fields of an answer that tables and figures need, and of others where present.
_ROW: dict[str, Any] = {
    "prompt": str,
    "family": str | int | float | None,
    "difficulty": str | int | float | None,
    "score": _NUMBER,
    "route": dict,
    "rows": list,
    "base_rows": int,
    "visual_macs_ratio": _NUMBER,
}
_OPTIONAL_ROW: dict[str, Any] = {
    "answer": str,
    **dict.fromkeys(("prefill_flops", "new_tokens", "ms", "prefill_ms"), _NUMBER),
    "benchmark": str | None,
    "metric": str,
}


def read_status(folder: Path) -> dict[str, Any]:
    """The status.json of a run folder; empty if there is none.

    Raises:
        FileError: If it is damaged.
    """
    path = folder / STATUS
    try:
        status = _mapping(path)
    except FileNotFoundError:
        return {}
    wrong = [n for n, kind in _STATUS.items() if n in status and not isinstance(status[n], kind)]
    if wrong:
        value = shorten(repr(status[wrong[0]]), 100)
        raise FileError(f"{path} is damaged: its `{wrong[0]}` cannot be {value}.")
    return status


def read_metrics(folder: Path) -> dict[str, float | None]:
    """The metrics.json of a run folder.

    Raises:
        FileNotFoundError: If there is none.
        FileError: If it is damaged.
    """
    path = folder / METRICS
    metrics = _mapping(path)
    for name, value in metrics.items():
        if not isinstance(value, _NUMBER) or isinstance(value, bool):
            shown = shorten(repr(value), 100)
            raise FileError(f"{path} is damaged: {name} is not a number but {shown}.")
    return metrics


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The rows.jsonl of a run folder.

    Raises:
        FileNotFoundError: If there is none.
        FileError: If it is damaged; names the line.
    """
    path = folder / ROWS
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if wrong := wrong_fields(row):
            fields = ", ".join(wrong)
            raise FileError(f"{path}, line {number}: it is not an answer, see its {fields}.")
        if len(row["rows"]) != len(rows[0]["rows"]):
            raise FileError(f"{path}, line {number}: its `rows` have not the length of line 1.")
    return rows


def wrong_fields(row: Mapping[str, Any]) -> list[str]:
    """Names of the fields of an answer that are missing or of a wrong type."""
    wrong = [n for n, kind in _ROW.items() if n not in row or not isinstance(row[n], kind)]
    wrong += [n for n, kind in _OPTIONAL_ROW.items() if n in row and not isinstance(row[n], kind)]
    if not wrong and not all(k.isdigit() and isinstance(v, str) for k, v in row["route"].items()):
        wrong.append("route")
    if not wrong and not all(isinstance(count, int | float) for count in row["rows"]):
        wrong.append("rows")
    if not wrong and row["base_rows"] and row["visual_macs_ratio"] is None:
        wrong.append("visual_macs_ratio")
    return wrong


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The curves.jsonl of a run folder; empty if there is none.

    Raises:
        FileError: If it is damaged; names the line.
    """
    try:
        return read_rows(folder / CURVES)
    except FileNotFoundError:
        return []


def read_settings(folder: Path, needed: Sequence[str] = ()) -> DictConfig:
    """The config.yaml of a run folder.

    Args:
        folder: Run folder.
        needed: Sections that it must have.

    Raises:
        FileNotFoundError: If there is none.
        FileError: If it is damaged.
    """
    path = folder / SETTINGS
    text = read_text(path, MOST_SETTINGS)
    try:
        _refuse_large(text)
        config = OmegaConf.create(text)
    except RecursionError:
        raise FileError(f"{path} is not read, because its values are nested too deeply.") from None
    except (ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise FileError(f"{path} is damaged: {shorten(one_line(str(error)), 300)}") from None
    if not isinstance(config, DictConfig) or not config:
        raise FileError(f"{path} is damaged: it does not hold the settings of a run.")
    for name in needed:
        if not isinstance(config.get(name), DictConfig):
            raise FileError(f"{path} is damaged: it has no section `{name}`.")
    return config


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if value is None and not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not isinstance(value, dict):
        raise FileError(f"{path} is damaged: it is not a JSON object.")
    return value


def _refuse_large(text: str) -> None:
    """Raise a ValueError if aliases of a YAML text repeat values too often, or without end."""
    root = yaml.compose(text, yaml.SafeLoader)
    sizes: dict[int, int] = {}
    within: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in within:
            raise ValueError("an alias refers to a value that holds it.")
        if id(node) not in sizes:
            within.add(id(node))
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            sizes[id(node)] = 1 + sum(map(size, children))
            within.discard(id(node))
        return sizes[id(node)]

    if root is not None and (count := size(root)) > MOST_VALUES:
        raise ValueError(f"its aliases repeat values {count} times; {MOST_VALUES} are read.")
