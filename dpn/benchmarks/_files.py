"""Reading official files: what is wrong with one is said with file, line and field."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dpn.data.batch import DataError
from dpn.data.images import CorruptImageError, open_image

#: Field names and the types that their values may have.
Fields = Mapping[str, type | tuple[type, ...]]
ID = (int, str)


def read_jsonl(path: Path, fields: Fields) -> list[dict[str, Any]]:
    """Rows of a JSON lines file; blank lines are passed over.

    Raises:
        DataError: naming file, line and field.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append(checked(_parsed(line, path, f"line {number}"), fields, path, number))
    return rows


def read_json(path: Path) -> Any:
    """Value of a JSON file.

    Raises:
        DataError: naming file and line.
    """
    return _parsed(path.read_text(encoding="utf-8"), path)


def read_array(path: Path, fields: Fields, key: str | None = None) -> list[dict[str, Any]]:
    """Entries of a JSON file that holds an array, or an object with the array under a key.

    Raises:
        DataError: naming file, entry (from 1) and field.
    """
    value = read_json(path)
    if key is not None:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list):
        place = f"an array under {key!r}" if key else "an array"
        raise DataError(f"{path} must hold {place}; get the official file again.")
    return [checked(row, fields, path, n, "entry") for n, row in enumerate(value, 1)]


def read_object(path: Path, fields: Fields) -> dict[str, dict[str, Any]]:
    """Entries of a JSON file that holds an object, by their keys.

    Raises:
        DataError: naming file, entry (its key) and field.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold an object; get the file again.")
    return {key: checked(row, fields, path, repr(key), "entry") for key, row in value.items()}


def read_table(path: Path, fields: Fields, delimiter: str = "\t") -> list[dict[str, Any]]:
    """Rows of a file with a head line; cells are texts, missing ones empty.

    Raises:
        DataError: naming file, line and field.
    """
    csv.field_size_limit(sys.maxsize)  # images stand in cells
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        return [checked(row, fields, path, reader.line_num) for row in _rows(reader, path)]


def check_same(
    keys: Iterable[int | str], others: Iterable[int | str], path: Path, other: Path
) -> None:
    """Two files of one release have the same keys, say ids of questions.

    Raises:
        DataError: naming both files and a key that one of them lacks.
    """
    if odd := set(keys) ^ set(others):
        raise DataError(
            f"{path} and {other} do not belong together, {min(odd, key=str)!r} is in one of them"
            " alone; get both again."
        )


def image_of(folder: Path, name: str) -> partial[Image.Image]:
    """Opens an image of a folder, see `dpn.data.images.open_image`."""
    return partial(open_image, folder, name)


def decoded(data: bytes, place: str) -> Image.Image:
    """The RGB image of a file's bytes that stand in a table.

    Raises:
        CorruptImageError: naming the place.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except Exception as error:  # PIL's decoders raise about ten different types on broken files
        raise CorruptImageError(
            f"{place}: the image is corrupt ({error}); get the official file again."
        ) from error


def checked(
    row: Any, fields: Fields, path: Path, number: int | str, unit: str = "line"
) -> dict[str, Any]:
    """The row, if it is an object whose fields have the right types.

    Raises:
        DataError: naming file, row (`unit` and `number`) and field.
    """
    if not isinstance(row, dict):
        raise DataError(f"{path}, {unit} {number}: it holds no object but {row!r:.60}.")
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
        raise DataError(f"{where}: no JSON ({error}); get the file again.") from error
