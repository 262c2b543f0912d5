"""Readers for official files; errors name file, line and field."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dpn.data.batch import DataError
from dpn.data.image_files import decode_image, open_image
from dpn.data.image_rules import OFFICIAL

#: Field names and the allowed types of their values.
Fields = Mapping[str, type | tuple[type, ...]]
ID = (int, str)


def read_jsonl(path: Path, fields: Fields) -> list[dict[str, Any]]:
    """Read a JSON lines file, skipping blank lines.

    Raises:
        DataError: If a line is invalid; names file, line and field.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append(checked(_parsed(line, path, f"line {number}"), fields, path, number))
    return rows


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If it is not valid JSON; names the file.
    """
    return _parsed(path.read_text(encoding="utf-8"), path)


def read_array(path: Path, fields: Fields, key: str | None = None) -> list[dict[str, Any]]:
    """Read the entries of a JSON array, which may be the value of a key in an object.

    Raises:
        DataError: If an entry is invalid; names file, entry (starting at 1) and field.
    """
    value = read_json(path)
    if key is not None:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list):
        place = f"an array under {key!r}" if key else "an array"
        raise DataError(f"{path} must hold {place}; download the official file again.")
    return [checked(row, fields, path, n, "entry") for n, row in enumerate(value, 1)]


def read_object(path: Path, fields: Fields) -> dict[str, dict[str, Any]]:
    """Read the entries of a JSON object by key.

    Raises:
        DataError: If an entry is invalid; names file, entry (its key) and field.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold an object; download the file again.")
    return {key: checked(row, fields, path, repr(key), "entry") for key, row in value.items()}


def read_table(path: Path, fields: Fields, delimiter: str = "\t") -> list[dict[str, Any]]:
    """Read a table with a header line; all cells are strings, missing ones empty.

    Raises:
        DataError: If a line is invalid; names file, line and field.
    """
    csv.field_size_limit(sys.maxsize)  # cells hold whole images
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        return [checked(row, fields, path, reader.line_num) for row in _rows(reader, path)]


def check_same(
    keys: Iterable[int | str], others: Iterable[int | str], path: Path, other: Path
) -> None:
    """Check that two files of one release have the same keys, such as question ids.

    Raises:
        DataError: If they differ; names both files and a key that only one of them has.
    """
    if odd := set(keys) ^ set(others):
        raise DataError(
            f"{path} and {other} do not belong together: {min(odd, key=str)!r} is in only one of"
            " them; download both again."
        )


def image_of(folder: Path, name: str) -> partial[Image.Image]:
    """Return a function that opens an image of a folder, see `dpn.data.image_files.open_image`."""
    return partial(open_image, folder, name, OFFICIAL)


def decoded(data: bytes, place: str) -> Image.Image:
    """Decode the bytes of an image file as RGB.

    Raises:
        ImageError: If they are corrupt; names `place`, where the bytes come from.
    """
    return decode_image(data, f"{place}: the image", OFFICIAL, "download the official file again.")


def checked(
    row: Any, fields: Fields, path: Path, number: int | str, unit: str = "line"
) -> dict[str, Any]:
    """Return the row after checking that it is an object whose fields have the right types.

    Raises:
        DataError: If it is not; names file, row (`unit` and `number`) and field.
    """
    if not isinstance(row, dict):
        raise DataError(f"{path}, {unit} {number}: it must be an object, not {row!r:.60}.")
    for name, types in fields.items():
        allowed = types if isinstance(types, tuple) else (types,)
        words = " or ".join(kind.__name__ for kind in allowed)
        if name not in row or (row[name] is None and type(None) not in allowed):
            raise DataError(f"{path}, {unit} {number}: field {name!r} ({words}) is missing.")
        is_flag = isinstance(row[name], bool) and bool not in allowed
        if is_flag or not isinstance(row[name], allowed):
            raise DataError(
                f"{path}, {unit} {number}: field {name!r} is {row[name]!r:.60}; it must be {words}."
            )
    return row


def _rows(reader: "csv.DictReader[str]", path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def _parsed(text: str, path: Path, place: str = "") -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = ", ".join(filter(None, (str(path), place)))
        raise DataError(f"{where}: not valid JSON ({error}); download the file again.") from error
