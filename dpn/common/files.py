"""Atomic files, each written beside its place and then renamed into it; and checked reading.

A reader opens regular files only and bounds their size, so that no pipe, device or damaged file in
a place where a command expects one of its own files can stop the command.
"""

import itertools
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dpn.common.errors import FileError
from dpn.common.text import shorten

MOST_BYTES = 64 * 2**20
"""Largest size of a text file that is read as a whole."""
MOST_LINE = 16 * 2**20
"""Largest size of a line of JSON."""
BLANK = ValueError("it is empty.")
"""Value of a blank line, see `json_lines`."""
_TEMPORARY = re.compile(r"\..+\.tmp")
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` if the block succeeds, and is removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # e.g. of a full disk
            error.filename = str(path)
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` if the block succeeds, and is removed if it fails.

    All its files get the permissions of newly created files, whatever library wrote them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = _beside(path), _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
        for place, _, names in os.walk(temporary, topdown=False):
            for name in names:
                file = Path(place, name)
                file.chmod(mode)
                _sync(file)
            _sync(Path(place))
        with suppress(FileNotFoundError):
            path.rename(before)
        temporary.rename(path)
        _sync(path.parent)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_temporary(folder: Path, lock: str = ".lock") -> None:
    """Remove what killed processes left in a folder; only the owner of its lock may call this.

    Args:
        folder: Folder to clean, with its subfolders.
        lock: Name of a file that marks a subfolder with an owner of its own, which is left out.
    """
    for place, folders, files in os.walk(folder):
        left = [name for name in (*folders, *files) if _TEMPORARY.fullmatch(name)]
        for name in left:
            path = Path(place, name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        folders[:] = [f for f in folders if f not in left and not Path(place, f, lock).exists()]


def _beside(path: Path) -> Path:
    """A new hidden name in the folder of a path; processes of two machines may have one number."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not all file systems can do this for folders
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; what UTF-8 cannot encode is escaped as in JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json.dumps(_finite(row), ensure_ascii=False) + "\n" for row in rows))


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a JSON line."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")


def why_unwritten(error: BaseException) -> str:
    """The reason why writing failed; libraries hide the system's error behind their own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return shorten(str(error), 300)


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The content of a text file in UTF-8.

    Args:
        path: File to read.
        most: Largest size in bytes.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If it is not a regular file, is too large, cannot be read, or is not UTF-8.
    """
    with _opened(path, most) as file:
        data = file.read(most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path} is not a text file in UTF-8: byte {error.start} is wrong."
        ) from None


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None if the file does not exist; NaN and infinities become None.

    Raises:
        FileError: See `read_text`; or the file is not complete JSON.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    try:
        return parse_json(text)
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If a line is not a JSON object; names the line.
    """
    rows: list[dict[str, Any]] = []
    for number, row in json_lines(path):
        if isinstance(row, ValueError):
            raise FileError(f"{path}, line {number}: {row}")
        if not isinstance(row, dict):
            raise FileError(f"{path}, line {number}: it is not a JSON object but {_shown(row)}.")
        rows.append(row)
    return rows


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each line; the value of one that is not complete JSON is a
    ValueError with the reason, and that of a blank one is `BLANK`.

    Lines end with a line feed alone: JSON strings may hold other characters that Python takes for
    the end of a line.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If it is not a regular file, or a line is longer than `MOST_LINE`.
    """
    with _opened(path, None) as file:
        for number in itertools.count(1):
            line = file.readline(MOST_LINE)
            if not line:
                return
            if len(line) == MOST_LINE and not line.endswith(b"\n"):
                raise FileError(f"{path}, line {number}: it has more than {MOST_LINE} bytes.")
            yield number, _value_or_error(line) if line.strip() else BLANK


def _value_or_error(line: bytes) -> Any:
    try:
        return parse_json(line.decode("utf-8").removesuffix("\n"))
    except UnicodeDecodeError as error:
        return ValueError(f"it is not UTF-8 at byte {error.start}.")
    except ValueError as error:
        return error


def parse_json(text: str) -> Any:
    """The value of a JSON text, whose strings can be written again; NaN and infinities become None.

    Raises:
        ValueError: If it is not complete JSON; the message is a sentence that starts with `it`.
    """
    if not text.strip():
        raise ValueError("it is empty.")
    try:
        value = json.loads(text, parse_constant=lambda name: None, parse_float=_finite_float)
        return _writable(value) if "\\u" in text else value
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not complete JSON ({error.msg}, letter {error.pos}).") from None
    except RecursionError:
        raise ValueError("it is not read, because its values are nested too deeply.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"it is not read ({error}).") from None


def _finite_float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _writable(value: Any) -> Any:
    """The value with a mark in place of each lone surrogate, which no text file can hold."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_writable(key): _writable(item) for key, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _opened(path: Path, most: int | None) -> Iterator[Any]:
    """A regular file, opened to read bytes.

    Raises:
        FileNotFoundError: If it does not exist.
        FileError: If it is not a regular file, has more bytes than `most`, or cannot be read.
    """
    try:
        _refuse_special(path, path.stat(), most)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never waits for a pipe's writer
        with open(descriptor, "rb") as file:
            _refuse_special(path, os.fstat(descriptor), most)
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path} does not exist.") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from None


def _refuse_special(path: Path, state: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "not a regular file"
        raise FileError(f"{path} is {kind} where a file is expected; remove it.")
    if most is not None and state.st_size > most:
        raise FileError(f"{path} has {state.st_size} bytes, more than the {most} that are read.")


def _shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), 100)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
