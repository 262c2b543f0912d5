"""Index of the rows of a file, a JSON array or JSON lines, so that rows can be read one by one.

The index of a large file is an Arrow file with four small columns. It is made once, reading the
data file in pieces, and memory-mapped afterwards, so no process holds the rows in memory.
"""

import hashlib
import json
import logging
import os
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from filelock import FileLock

from dpn.common.files import atomic_path
from dpn.common.progress import Bar
from dpn.common.text import shorten
from dpn.data.batch import DataError
from dpn.data.row_format import count_words, image_names

log = logging.getLogger(__name__)

FORMAT = 2  # increase it when the index of the same file changes
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
        DataError: If the file is missing or holds no rows; names the cause.
    """
    if not file.is_file():
        wrong = "is a folder or a special file" if file.exists() else "does not exist"
        raise DataError(f"The data file {file} {wrong}; give the path of a JSON file in `data`.")
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
        DataError: If the file holds no rows; names the cause.
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

    The file is a JSON array, or one object after the other (JSON lines), in UTF-8 with or without
    byte order mark.

    Raises:
        DataError: If it is neither, or has no row; names the cause.
    """
    size, start = file.stat().st_size, _check_format(file)
    bar = Bar("indexing, MiB", size // 2**20, drawn=size >= SMALL)
    with file.open(encoding="utf-8", newline="") as stream, closing(bar):
        stream.seek(start)
        reader, number = _Reader(stream, start), 0
        try:
            in_array = reader.next_is("[")
            if reader.peek() == "]" if in_array else reader.peek() != "{":
                raise _no_rows(file)
            more = True
            while more:
                reader.peek()
                begin = reader.place
                row = reader.value()
                yield begin, reader.place - begin, row
                number += 1
                if number % 1000 == 0:
                    bar.move(reader.place // 2**20)
                more = reader.next_is(",") if in_array else reader.peek() == "{"
            if in_array and not reader.next_is("]"):
                raise ValueError("',' or ']' is missing")
            if reader.next():
                raise ValueError(f"something follows the {'array' if in_array else 'last object'}")
            if not in_array and number == 1 and not {"conversations", "messages"} & row.keys():
                raise _no_rows(file, row)
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            reason = str(getattr(error, "msg", None) or error)
            if isinstance(error, RecursionError):
                reason = "a value is nested too deeply"
            elif isinstance(error, UnicodeDecodeError):
                reason = f"{error}; save it as UTF-8"
            raise DataError(
                f"The data file {file} is not valid JSON: {reason}, after {number} rows."
            ) from error


#: First bytes of other kinds of files.
_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed with gzip; decompress it",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it",
    b"BZh": "compressed with bzip2; decompress it",
    b"\xfd7zXZ": "compressed with xz; decompress it",
    b"PAR1": "a parquet file; convert it to JSON, e.g. with pandas.read_parquet and to_json",
    b"ARROW1": "an Arrow file; convert it to JSON",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file with `git lfs pull`",
    b"\xff\xfe": "in UTF-16 or UTF-32; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
    b"\x00\x00\xfe\xff": "in UTF-32; save it as UTF-8",
}


def _check_format(file: Path) -> int:
    """Return the place of the first byte after a byte order mark of UTF-8.

    Raises:
        DataError: If the file is empty or of another format.
    """
    with file.open("rb") as stream:
        head = stream.read(32)
    if not head:
        raise DataError(f"The data file {file} is empty; write or download it again.")
    for mark, reason in _OTHER_FORMATS.items():
        if head.startswith(mark):
            raise DataError(f"The data file {file} is {reason}.")
    if b"\0" in head[:4]:
        raise DataError(f"The data file {file} is in UTF-16 or no text; save it as JSON in UTF-8.")
    return len(BOM_UTF8) if head.startswith(BOM_UTF8) else 0


def _no_rows(file: Path, content: Mapping[str, Any] | None = None) -> DataError:
    """Return the error of a file without rows; its content may be an object around them."""
    keys = [key for key, value in (content or {}).items() if isinstance(value, list)]
    hint = (
        f"; its rows seem to be under {shorten(repr(keys[0]), 60)}: save that array" if keys else ""
    )
    return DataError(
        f"The data file {file} must hold a JSON array of at least one row, or JSON lines{hint}."
    )


class _Reader:
    """Reader of JSON values from a stream that holds one piece in memory at a time.

    Attributes:
        place: Number of bytes read so far.
    """

    def __init__(self, stream: TextIO, place: int = 0):
        self.stream, self.place = stream, place
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

    def next_is(self, character: str) -> bool:
        """Read the next non-blank character if it is this one; return whether it is."""
        found = self.peek() == character
        if found:
            self.next()
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
