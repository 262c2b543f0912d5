"""Index of the rows of a JSON array in a file, so that rows can be read one by one.

The index of a large file is an Arrow file with four small columns. It is made once, reading the
data file in pieces, and memory-mapped afterwards, so no process holds the rows in memory.
"""

import hashlib
import json
import logging
import os
import re
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from filelock import FileLock

from dpn.common.files import atomic_path
from dpn.common.progress import Bar
from dpn.data.batch import DataError
from dpn.data.conversation import count_words, image_names

log = logging.getLogger(__name__)

FORMAT = 1  # increase it when the index of the same file changes
SMALL = 32 * 2**20
"""Bytes; smaller files are indexed at every start, in less than a second, and nothing is saved."""
PIECE = 4 * 2**20  # characters to read at a time

_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Index(NamedTuple):
    """Position and size of the R rows of a file.

    Attributes:
        start: `[R]` int64, position of the first byte in the file.
        size: `[R]` int32, number of bytes.
        words: `[R]` int32, number of words, see `count_words`; 0 for rows without turns.
        image: `[R]` uint8, 1 for rows with an image.
    """

    start: np.ndarray
    size: np.ndarray
    words: np.ndarray
    image: np.ndarray


def open_index(file: Path) -> Index:
    """Open the index of a data file; make it if there is none for the file's size and time.

    The index is stored beside the file or, if that folder is not writable, in the user's cache
    folder. When several processes start together, one makes it while the others wait.

    Raises:
        DataError: If the file is missing or is not a JSON array of at least one row.
    """
    if not file.is_file():
        raise DataError(f"The data file {file} does not exist; check the path in `data`.")
    stat = file.stat()
    if stat.st_size < SMALL:
        return make_index(file)
    key = {"format": FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    beside, cached = _places(file)
    for place in (beside, cached):
        if found := _load(place, key):
            return found
    place = beside if os.access(beside.parent, os.W_OK) else cached
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if found := _load(place, key):
            return found
        log.info("Indexing %s, once, into %s.", file, place)
        made = make_index(file)
        _save(made, place, key)
        log.info("Indexed %d rows.", len(made.start))
        return made


def make_index(file: Path) -> Index:
    """Make the index of a data file, reading it in pieces.

    Raises:
        DataError: If the file is not a JSON array of at least one row.
    """
    start, size, words, image = array("q"), array("i"), array("i"), array("B")
    for begin, length, row in scan(file):
        start.append(begin)
        size.append(length)
        words.append(count_words(row))
        image.append(bool(image_names(row)))
    return Index(*(np.array(column) for column in (start, size, words, image)))


def scan(file: Path) -> Iterator[tuple[int, int, Any]]:
    """Yield first byte, number of bytes and content (as from `json.loads`) of each row.

    Raises:
        DataError: If the file is not a JSON array of at least one row.
    """
    size = file.stat().st_size
    bar = Bar("indexing, MiB", size // 2**20, drawn=size >= SMALL)
    with file.open(encoding="utf-8", newline="") as stream, closing(bar):
        reader, number = _Reader(stream), 0
        try:
            if reader.next() != "[" or reader.peek() == "]":
                raise DataError(f"The data file {file} must hold a JSON array of at least one row.")
            after = ","
            while after == ",":
                reader.peek()
                begin = reader.place
                row = reader.value()
                yield begin, reader.place - begin, row
                number += 1
                if number % 1000 == 0:
                    bar.move(reader.place // 2**20)
                after = reader.next()
            if after != "]":
                raise ValueError("',' or ']' is missing")
            if reader.next():
                raise ValueError("something follows the array")
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(
                f"The data file {file} is not valid JSON: {reason}, after {number} rows."
            ) from error


class _Reader:
    """Reader of JSON values from a stream that holds one piece in memory at a time.

    Attributes:
        place: Number of bytes read so far.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.place = stream, 0
        self.text, self.at = "", 0

    def peek(self) -> str:
        """Return the next non-blank character without reading past it; empty at the end."""
        while True:
            self._pass(_BLANKS.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def next(self) -> str:
        """Read the next non-blank character; empty at the end."""
        found = self.peek()
        self._pass(self.at + len(found))
        return found

    def value(self) -> Any:
        """Read the JSON value that starts here.

        Raises:
            JSONDecodeError: If there is none.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # An error near the end of what was read can mean a value that continues.
                cut = len(self.text) - error.pos < 16 or error.msg.startswith("Unterminated")
                if not (cut and self._more()):
                    raise
            else:
                # A number at the end of the text may continue in the next piece.
                if end < len(self.text) or not self._more():
                    self._pass(end)
                    return value

    def _pass(self, end: int) -> None:
        self.place += len(self.text[self.at : end].encode())
        self.at = end

    def _more(self) -> bool:
        """Read more text; the piece grows with the value, so long values take linear time."""
        rest = self.text[self.at :]
        new = self.stream.read(max(PIECE, len(rest)))
        self.text, self.at = rest + new, 0
        return bool(new)


def _places(file: Path) -> tuple[Path, Path]:
    """Return the paths of the index beside the file and in the cache, named by the full path."""
    path = file.resolve()
    name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.arrow"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return path.with_name(f".{path.name}.index.arrow"), cache / "dpn" / "index" / name


def _load(place: Path, key: dict[str, int]) -> Index | None:
    """Return the memory-mapped index, or None if there is no readable one with this key."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    if table.schema.metadata != _metadata(key):
        return None
    return Index(*(table[name].chunk(0).to_numpy() for name in Index._fields))


def _save(index: Index, place: Path, key: dict[str, int]) -> None:
    import pyarrow as pa

    table = pa.table(index._asdict(), metadata=_metadata(key))
    with atomic_path(place) as path, pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _metadata(key: dict[str, int]) -> dict[bytes, bytes]:
    return {name.encode(): str(value).encode() for name, value in key.items()}
