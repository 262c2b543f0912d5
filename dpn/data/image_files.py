"""Open image files: the only place that decodes a picture that others made.

Every command opens pictures here, so that all of them see the same pixels: the first frame, turned
upright by its EXIF orientation as in Hugging Face's `load_image`, with 8 bits per channel, on a
white ground where it is transparent. Colour profiles are ignored. Sizes are checked before
decoding, and only the formats in `FORMATS` are tried: some of Pillow's start other programs.
"""

import base64
import binascii
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dpn.common.text import shorten
from dpn.data.batch import DataError
from dpn.data.image_paths import find_image
from dpn.data.image_rules import (
    OWN,
    CorruptImageError,
    ImageRules,
    ImageValuesError,
    LargeImageError,
    MissingImageError,
)

#: Formats to decode, by Pillow's names.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_AGAIN = "download it again."


def open_image(root: Path | str, name: str, rules: ImageRules = OWN) -> Image.Image:
    """Read an image inside a folder as RGB; see `find_image` and `read_image`.

    Raises:
        ImageError: If there is no such image, or it cannot be read.
    """
    return read_image(find_image(root, name), rules)


def read_image(path: Path, rules: ImageRules = OWN) -> Image.Image:
    """Read an image file as RGB; the format is detected from the content.

    Raises:
        ImageError: If the file is missing, empty, broken, too large or of unknown values.
    """
    name = f"image {path}"
    with _opened(path, name, rules) as image:
        return to_rgb(image, rules, name)


def decode_image(data: bytes, name: str, rules: ImageRules = OWN, fix: str = _AGAIN) -> Image.Image:
    """Decode the bytes of an image file as RGB; see `read_image`.

    Args:
        data: Content of the file.
        name: Where the bytes come from, for error messages.
        rules: How to read them.
        fix: What to do with a corrupt file, the end of the error message.
    """
    with _opened(io.BytesIO(data), name, rules, fix) as image:
        return to_rgb(image, rules, name)


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Return an image for the processor as RGB.

    Args:
        source: PIL image, path of a file, `http` or `https` address, `data:image/` address, or the
            base64 text of a file.

    Raises:
        ImageError: If it is not an image, cannot be read or cannot be downloaded.
    """
    if isinstance(source, Image.Image):
        OWN.check_size(*source.size, "the image")
        return to_rgb(source, OWN)
    if isinstance(source, Path):
        return read_image(source)
    if not isinstance(source, str):
        raise TypeError(f"an image is a {type(source).__name__}; give a PIL image or a path.")
    shown = f"image {shorten(repr(source), 80)}"
    if source.startswith(("http://", "https://")):
        try:
            answer = httpx.get(source, timeout=60, follow_redirects=True).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise MissingImageError(f"{shown} cannot be downloaded ({error}).") from error
        return decode_image(answer.content, shown)
    text = source.partition(",")[2] if source.startswith("data:image/") else source
    if text == source and _is_file(source):
        return read_image(Path(source))
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MissingImageError(
            f"{shown} is neither a file, nor an http, https or data:image address, nor base64 text;"
            " check the path."
        ) from error
    return decode_image(data, shown)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a name
        return False


def remarks(path: Path, rules: ImageRules = OWN) -> list[str]:
    """Decode an image file, and return what a user may want to know about its pixels.

    Raises:
        ImageError: See `read_image`.
    """
    name, found = f"image {path}", []
    with _opened(path, name, rules) as image:
        turned, deep = _orientation(image) is not None, image.mode[0] in "IF"
        alpha = image.has_transparency_data and not deep
        if alpha and _rgba(image).getchannel("A").getextrema() == (0, 0):
            found.append("wholly transparent image")
        elif len(to_rgb(image, rules, name).getcolors(1) or ()) == 1:
            found.append("image of one colour")
    if deep:
        found.append(f"image of more than 8 bits, {'clipped' if rules.released else 'scaled'}")
    if turned:
        found.append(
            f"image with an EXIF orientation, {'ignored' if rules.released else 'rotated'}"
        )
    return found


@contextmanager
def _opened(
    source: Path | io.BytesIO, name: str, rules: ImageRules, fix: str = _AGAIN
) -> Iterator[Image.Image]:
    """Open a picture whose size the rules allow; every failure is an `ImageError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, Path) and source.stat().st_size == 0:
                raise CorruptImageError(f"{name} is corrupt: the file is empty; {fix}")
            with Image.open(source, formats=_formats()) as image:
                rules.check_size(*image.size, name)
                yield image
    except DataError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise LargeImageError(
            f"{name} is too large for the memory or for Pillow ({error}); resize the file."
        ) from error
    except UnidentifiedImageError as error:
        raise CorruptImageError(
            f"{name} is corrupt or truncated, or of a format that is not read (read are"
            f" {', '.join(_formats())}); convert it, or {fix}"
        ) from error
    except Exception as error:  # PIL's decoders raise about ten different types on broken files
        if isinstance(error, OSError) and error.errno is not None:
            raise MissingImageError(
                f"{name} cannot be read ({error.strerror}); check the file and its permissions."
            ) from error
        raise CorruptImageError(f"{name} is corrupt or truncated ({error}); {fix}") from error


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image, rules: ImageRules = OWN, name: str = "the image") -> Image.Image:
    """Return an image as RGB, without metadata, so that doing it again changes nothing.

    Unless `rules.released`: the EXIF orientation is applied; 16 bits are scaled to 8, floating
    point values from 0 to 1 to 0 to 255; transparent pixels show `rules.background`.

    Raises:
        ImageValuesError: If the values are 32-bit integers, or floating point values outside of 0
            to 1.
    """
    if rules.released:
        rgb = image.convert("RGB")
    else:
        turn = _orientation(image)
        flat = _eight_bits(image, name)
        if flat.has_transparency_data:
            shown = _rgba(flat)
            rgb = Image.new("RGB", flat.size, rules.background)
            rgb.paste(shown, mask=shown.getchannel("A"))
        else:
            rgb = flat.convert("RGB")
        if turn is not None:
            rgb = rgb.transpose(turn)
    rgb.info = {}
    return rgb


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn an image upright; None also for EXIF data that cannot be read."""
    image.load()  # PNG files may hold EXIF data after the pixels
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # viewers show such pictures unturned, too
        return None


def _rgba(image: Image.Image) -> Image.Image:
    image = image.convert("LA") if image.mode == "La" else image
    return image.convert("RGBA")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Return an image of 16-bit or floating point values as one of 8 bits, others unchanged."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # also NaN
            raise ImageValuesError(
                f"{name} holds floating point values from {low:g} to {high:g}; scale them to 0 to 1"
                " or save it with 8 bits."
            )
        return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    if image.mode == "I" and image.format != "PPM":  # Pillow scales PGM files to 16 bits
        raise ImageValuesError(
            f"{name} holds 32-bit integers, whose range is not known; save it with 8 or 16 bits."
        )
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample; 12, too
    top = 2**bits - 1
    grey = Image.fromarray(((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8))
    if "transparency" in image.info:  # the value of transparent pixels
        clear = values == image.info["transparency"]
        grey.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return grey
