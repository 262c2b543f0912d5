"""Checksums of the weights in a model folder, in the format of `sha256sum`."""

import hashlib
import re
from pathlib import Path

from dpn.common.errors import FileError
from dpn.common.files import read_text, write_text

CHECKSUMS = "SHA256SUMS"
"""File of a model folder with the checksum of each file of weights."""


def write_checksums(folder: Path) -> None:
    """Write the checksums of all `*.safetensors` of a folder, as `sha256sum -c` reads them."""
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    if lines:
        write_text(folder / CHECKSUMS, "".join(lines))


def check_checksums(folder: Path) -> None:
    """Check the weights in a folder; one without checksums is accepted as it is.

    Raises:
        FileError: If the bytes of a file are not those that were written; names it.
    """
    try:
        lines = read_text(folder / CHECKSUMS, most=2**20).splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        found = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/]+)", line)
        if found is None:
            raise FileError(f"{folder / CHECKSUMS} is damaged; remove it, or copy the model again.")
        path = folder / found[2]
        if path.is_file() and _sha256(path) != found[1]:
            raise FileError(
                f"{path} has not the bytes that were saved ({CHECKSUMS}), so it is damaged; copy"
                f" or train the model again. If you changed it on purpose, remove {CHECKSUMS}."
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
