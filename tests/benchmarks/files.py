"""Tiny files in the official formats."""

import csv
import io
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


def write_table(path: Path, rows) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], delimiter="\t")
    table.writeheader()
    table.writerows(rows)
    write(path, text.getvalue())


def picture(path: Path, colour=(200, 20, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_bytes(colour))


def picture_bytes(colour=(200, 20, 20)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 12), colour).save(data, "PNG")
    return data.getvalue()


def damage(path: Path, **changes) -> None:
    """Change fields of the last row of a JSON lines file; None removes a field."""
    lines = path.read_text(encoding="utf-8").splitlines()
    row = {**json.loads(lines[-1]), **changes}
    lines[-1] = json.dumps({key: value for key, value in row.items() if value is not None})
    write(path, "\n".join(lines) + "\n")


def change(path: Path, edit) -> None:
    """Edit the value of a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    write_json(path, value)


def people(**counts) -> list[dict]:
    """Ten answers in VQA's format, from how many people gave each."""
    texts = [text for text, count in counts.items() for _ in range(count)]
    return [{"answer": text, "answer_id": n} for n, text in enumerate(texts, 1)]
