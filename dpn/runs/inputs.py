"""The data files of a run: noted in its folder, so that it never continues on other ones."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpn.common.errors import FileError
from dpn.common.files import read_json, write_json
from dpn.runs.folder import RunError

INPUTS = "inputs.json"
"""File of a run folder with name, size and hash of each data file."""
WHOLE = 64 * 2**20
"""Bytes up to which a file is hashed as a whole; of a larger one, `PIECES` pieces are."""
PIECES, PIECE = 256, 2**16


class InputsChanged(RunError):
    """Data files are not those that a run was trained on."""


def note(folder: Path, files: Mapping[str, Path]) -> None:
    """Write down name, size and hash of data files, e.g. of `train` and `val`."""
    write_json(folder / INPUTS, {role: _described(path) for role, path in files.items()})


def changed(folder: Path, files: Mapping[str, Path]) -> list[Path]:
    """The files that differ from those noted in a run folder; runs of earlier versions have no
    notes.

    Raises:
        FileError: If the notes are damaged.
    """
    known = read_json(folder / INPUTS)
    if known is None and not (folder / INPUTS).exists():
        return []
    if not isinstance(known, dict) or not all(isinstance(v, dict) for v in known.values()):
        raise FileError(
            f"{folder / INPUTS} is damaged; remove it to continue with the data files as they are."
        )
    there = {role: path for role, path in files.items() if path.exists()}
    return [path for role, path in there.items() if role in known and _differs(path, known[role])]


def refuse_changed(folder: Path, files: Mapping[str, Path], fix: str) -> None:
    """Check that data files are those noted in a run folder.

    Args:
        folder: Run folder.
        files: Data files by their role.
        fix: What else the user can do, in words that continue a sentence.

    Raises:
        InputsChanged: If one differs; names it.
        FileError: If the notes are damaged.
    """
    if other := changed(folder, files):
        names = " and ".join(map(str, other))
        raise InputsChanged(
            f"{names} changed after the run {folder} began to train on it. Put the file back,"
            f" {fix}."
        )


def _differs(path: Path, known: Mapping[str, Any]) -> bool:
    if path.stat().st_size != known.get("size"):
        return True
    return _hash(path) != known.get("sha256")


def _described(path: Path) -> dict[str, Any]:
    return {"name": path.name, "size": path.stat().st_size, "sha256": _hash(path)}


def _hash(path: Path) -> str:
    """Hash of a file, or of pieces in equal distances and its end if it is large."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for place in _places(size):
            file.seek(place)
            digest.update(file.read(PIECE if size > WHOLE else WHOLE))
    return digest.hexdigest()


def _places(size: int) -> Iterable[int]:
    if size <= WHOLE:
        return [0]
    return [*range(0, size - PIECE, size // PIECES), size - PIECE]
