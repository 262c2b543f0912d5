"""Readers for official files; errors name file, line and field.

Whatever is wrong with a file, its reader raises a DataError of one sentence.
"""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: If it cannot be read or is not UTF-8; names the file.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); download the official file again."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} cannot be read ({reason}); check it or download it again."
        ) from error


def read_jsonl(path: Path, fields: Fields) -> list[dict[str, Any]]:
    """Read a JSON lines file, skipping blank lines.

    Raises:
        DataError: If a line is invalid; names file, line and field.
    """
    return [
        checked(_parsed(line, path, f"line {number}"), fields, path, number)
        for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path)), 1)
        if line.strip()
    ]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If it is not valid JSON; names the file.
    """
    return _parsed(read_text(path), path)


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

    def entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        most = Counter(key for key, _ in pairs).most_common(1)
        if most and most[0][1] > 1:
            raise DataError(f"{path} has the key {most[0][0]!r} twice; download the file again.")
        return dict(pairs)

    value = _parsed(read_text(path), path, pairs=entries)
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold an object; download the file again.")
    return {key: checked(row, fields, path, repr(key), "entry") for key, row in value.items()}


def read_table(path: Path, fields: Fields, delimiter: str = "\t") -> list[dict[str, Any]]:
    """Read a table with a header line; all cells are strings, missing ones empty.

    Raises:
        DataError: If a line is invalid; names file, line and field.
    """
    csv.field_size_limit(sys.maxsize)  # cells hold whole images
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    rows = []
    for row in _rows(reader, path):
        if None in row or None in row.values():
            raise DataError(
                f"{path}, line {reader.line_num}: it has not as many cells as the head; download"
                " the official file again."
            )
        rows.append(checked(row, fields, path, reader.line_num))
    return rows


def keyed(rows: Iterable[tuple[Any, Any]], path: Path, what: str = "question") -> dict[Any, Any]:
    """Return a dictionary of keys and values from a file, in which a key may repeat only with the
    same value.

    Raises:
        DataError: If a key has two values; names file and key.
    """
    found: dict[Any, Any] = {}
    for key, value in rows:
        if found.setdefault(key, value) != value:
            raise DataError(
                f"{path} has {what} {_words(key)} twice, with different content; download the"
                " official file again."
            )
    return found


def check_unique(keys: Iterable[Any], path: Path) -> None:
    """Check that no id of a file is there twice.

    Raises:
        DataError: If one is; names file and id.
    """
    counts = Counter(keys)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise DataError(
            f"{path} has question {_words(twice[0])} twice; download the official file again."
        )


def check_same(
    keys: Iterable[Any], others: Iterable[Any], path: Path, other: Path, hint: str = ""
) -> None:
    """Check that two files of one release have the same keys, such as question ids.

    Args:
        keys: Keys of the first file.
        others: Keys of the second one.
        path: The first file.
        other: The second one.
        hint: Which releases belong together; default: a request to download both again.

    Raises:
        DataError: If they differ; names both files and a key that only one of them has.
    """
    if odd := set(keys) ^ set(others):
        raise DataError(
            f"{path} and {other} do not belong together: {_words(min(odd, key=str))} is in only"
            f" one of them; {hint or 'download both again'}."
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


def _words(key: Any) -> str:
    return ", ".join(map(repr, key)) if isinstance(key, tuple) else repr(key)


def _parsed(
    text: str,
    path: Path,
    place: str = "",
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    where = ", ".join(filter(None, (str(path), place)))
    try:
        value = json.loads(text, object_pairs_hook=pairs)
        if _HALF_CHARACTER.search(text):  # escapes of UTF-16, which must come in pairs
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise DataError(
            f"{where}: the JSON is nested too deeply; download the file again."
        ) from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); download the file again.") from error
    return value
