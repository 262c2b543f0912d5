"""Find image files by the names that rows give them."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dpn.common.text import shorten
from dpn.data.image_rules import MissingImageError, OutsideImageError

#: Known extensions, tried when a file is missing: OCR-VQA's rows all say .jpg, but some of its
#: files are .gif.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")


def find_image(root: Path | str, name: Any) -> Path:
    """Find an image file inside a folder.

    If there is no file of this name, the other Unicode normal form is tried (macOS writes names in
    another form than Linux), then other image extensions: in place of the name's own if that is a
    known one, else at its end.

    Args:
        root: Image folder; paths that lead outside it are refused.
        name: Path relative to `root`, or an absolute path inside it.

    Raises:
        OutsideImageError: If the path leads outside the folder (`..`, a link, absolute).
        MissingImageError: If there is no regular file.
    """
    root, shown = Path(root), shorten(repr(name), 200)
    if not isinstance(name, str) or not name or "\0" in name:
        raise MissingImageError(f"an image is named {shown}; it must be a path relative to {root}.")
    if "://" in name or name.startswith("data:"):
        raise MissingImageError(
            f"image {shown} is an address; download it into the image folder {root} and give its"
            " path there."
        )
    odd = False  # whether something that is not a regular file has this name
    for spelling in _spellings(name):
        place = root / spelling
        try:
            inside = place.resolve().is_relative_to(root.resolve())
            found, there = inside and place.is_file(), inside and place.exists()
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself, too long, ...
            reason = getattr(error, "strerror", None) or error
            raise MissingImageError(
                f"image {shown} cannot be looked up in {root} ({reason}); correct the row's path."
            ) from error
        if not inside:
            raise OutsideImageError(
                f"image {shown} lies outside the image folder {root}; move it inside."
            )
        if found:
            return place
        odd = odd or there
    if odd:
        raise MissingImageError(
            f"image {shown} is a folder or a special file of {root}, not a picture; correct the"
            " row's path."
        )
    hint = " write / between folders, not \\;" if "\\" in name else ""
    is_plain = name.isprintable() and name == name.strip()
    missing = shorten(str(root / name), 300) if is_plain else f"{shown} in {root}"
    raise MissingImageError(
        f"image {missing} does not exist;{hint} check the image folder and the row's path."
    )


def _spellings(name: str) -> Iterator[str]:
    """Yield the names to look up, best first."""
    forms = {name: None, **{unicodedata.normalize(f, name): None for f in ("NFC", "NFD")}}
    yield from forms
    for form in forms:
        suffix = PurePosixPath(form).suffix
        stem = form.removesuffix(suffix) if suffix.lower() in SUFFIXES else form
        yield from (stem + other for other in SUFFIXES)
