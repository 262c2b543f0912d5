"""Where each row of a JSON array lies in its file, so that rows are read one by one.

The rows stay where they are. The index of a large file, an Arrow file of four small columns, is
made once by reading the file in pieces, and memory-mapped from then on: no process ever holds the
table.
"""

import hashlib
import json
import logging
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from filelock import FileLock
from rich.progress import Progress

from dpn.common.files import atomic_path
from dpn.common.progress import has_terminal
from dpn.data.batch import DataError
from dpn.data.conversation import count_words, image_names

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same file gives another index
SMALL = 32 * 2**20
"""Bytes; a smaller file is indexed at every start, in less than a second, and leaves no index."""
PIECE = 4 * 2**20  # characters that are read at a time

_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Index(NamedTuple):
    """One entry per row.

    Attributes:
        start: `[R]` int64, first byte in the file.
        size: `[R]` int32, bytes.
        words: `[R]` int32, of all turns together, see `count_words`; 0 for rows without turns.
        image: `[R]` uint8, 1 for rows that name an image.
    """

    start: np.ndarray
    size: np.ndarray
    words: np.ndarray
    image: np.ndarray


def open_index(file: Path) -> Index:
    """The index of a data file, made where there is none for its present size and time.

    It lies beside the file or, where that folder can not be written, in the user's cache folder. Of
    several processes that start together one makes it while the others wait.

    Raises:
        DataError: if the file is missing or holds no JSON array of at least one row.
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
    """Read a whole file, in pieces.

    Raises:
        DataError: see `open_index`.
    """
    start, size, words, image = array("q"), array("i"), array("i"), array("B")
    for begin, length, row in scan(file):
        start.append(begin)
        size.append(length)
        words.append(count_words(row))
        image.append(bool(image_names(row)))
    return Index(*(np.array(column) for column in (start, size, words, image)))


def scan(file: Path) -> Iterator[tuple[int, int, Any]]:
    """First byte, bytes and content of each row; the content is what `json.loads` gives.

    Raises:
        DataError: if the file holds no JSON array of at least one row.
    """
    hidden = not has_terminal() or file.stat().st_size < SMALL
    with file.open(encoding="utf-8", newline="") as stream, Progress(disable=hidden) as bar:
        task = bar.add_task("indexing", total=file.stat().st_size)
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
                    bar.update(task, completed=reader.place)
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
                f"The data file {file} is no valid JSON: {reason}, after {number} rows."
            ) from error


class _Reader:
    """JSON values from a stream that is held in memory piece by piece.

    Attributes:
        place: bytes of the stream that lie behind.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.place = stream, 0
        self.text, self.at = "", 0

    def peek(self) -> str:
        """The next character that is no blank, which stays next; empty at the end."""
        while True:
            self._pass(_BLANKS.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def next(self) -> str:
        """The next character that is no blank; empty at the end."""
        found = self.peek()
        self._pass(self.at + len(found))
        return found

    def value(self) -> Any:
        """The value that starts here.

        Raises:
            JSONDecodeError: if there is none.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # Only a value that is cut off is wrong at the end of what was read.
                cut = len(self.text) - error.pos < 16 or error.msg.startswith("Unterminated")
                if not (cut and self._more()):
                    raise
            else:
                # A number that ends with the text may go on in the next piece.
                if end < len(self.text) or not self._more():
                    self._pass(end)
                    return value

    def _pass(self, end: int) -> None:
        self.place += len(self.text[self.at : end].encode())
        self.at = end

    def _more(self) -> bool:
        """Read on, the more the longer a value is already, so that long ones cost linear time."""
        rest = self.text[self.at :]
        new = self.stream.read(max(PIECE, len(rest)))
        self.text, self.at = rest + new, 0
        return bool(new)


def _places(file: Path) -> tuple[Path, Path]:
    """Beside the file, and in the user's cache folder under a name of its whole path."""
    path = file.resolve()
    name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.arrow"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return path.with_name(f".{path.name}.index.arrow"), cache / "dpn" / "index" / name


def _load(place: Path, key: dict[str, int]) -> Index | None:
    """The memory-mapped index, if there is a readable one of this key."""
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
