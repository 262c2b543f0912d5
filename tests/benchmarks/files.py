"""Tiny files in the official formats."""

import json
from pathlib import Path

from PIL import Image


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    write(path, json.dumps(value))


def write_jsonl(path: Path, rows) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def picture(path: Path, colour=(200, 20, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), colour).save(path)


def damage(path: Path, **changes) -> None:
    """Change fields of the last row of a JSON lines file; None removes a field."""
    lines = path.read_text(encoding="utf-8").splitlines()
    row = {**json.loads(lines[-1]), **changes}
    lines[-1] = json.dumps({key: value for key, value in row.items() if value is not None})
    write(path, "\n".join(lines) + "\n")
