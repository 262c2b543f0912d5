"""Convert image files and PIL images to normalised pixels as LLaVA does, without torchvision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dpn.data.batch import DataError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ImageMode = Literal["pad", "square", "none"]


# Tried when a file is missing: OCR-VQA's rows all say .jpg, but some of its files are .gif.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")


class OutsideImageError(DataError):
    """An image's path points outside the image folder."""


class MissingImageError(DataError):
    """An image file does not exist."""


class CorruptImageError(DataError):
    """An image file cannot be decoded."""


def open_image(root: Path | str, name: str) -> Image.Image:
    """Read an image inside a folder as RGB; the format is detected from the content.

    Args:
        root: Image folder; paths outside it are refused.
        name: Path relative to `root`. If the file does not exist, other extensions are tried.

    Raises:
        DataError: If the path leads outside the folder (absolute, `..`, a link), or the file is
            missing, empty or broken.
    """
    return read_image(_find(Path(root), name))


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        DataError: If the file is empty or broken.
    """
    if path.stat().st_size == 0:
        raise CorruptImageError(f"image {path} is corrupt: the file is empty; download it again.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # PIL's decoders raise about ten different types on broken files
        raise CorruptImageError(
            f"image {path} is corrupt or truncated ({error}); download it again."
        ) from error


def _find(root: Path, name: Any) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise MissingImageError(
            f"an image is named {name!r}; it must be a path relative to {root}."
        )
    path = root / name
    for place in (path, *(path.with_suffix(suffix) for suffix in SUFFIXES)):
        try:
            inside, there = place.resolve().is_relative_to(root.resolve()), place.is_file()
        except (OSError, UnicodeEncodeError) as error:  # too long, not permitted, lone surrogate
            raise MissingImageError(f"image {name!r} cannot be looked up ({error}).") from error
        if Path(name).is_absolute() or not inside:
            raise OutsideImageError(
                f"image {name!r} lies outside the image folder {root}; move it inside."
            )
        if there:
            return place
    raise MissingImageError(
        f"image {path} does not exist; check the image folder and the row's path."
    )


@dataclass(frozen=True)
class ImageTransform:
    """Convert a PIL image to normalised pixels.

    Args:
        mode: How to fit the image to `size`. `pad` pastes it on a square canvas of the mean colour,
            then resizes; `square` resizes the shortest edge and crops the centre; `none` keeps the
            image's size.
        size: Height and width of the result in pixels; unused with `none`.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        multiple: Patch size of the vision tower; with `none`, image sides must be multiples of it.
    """

    mode: ImageMode = "pad"
    size: int = 336
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    multiple: int = 14

    def __post_init__(self) -> None:
        if self.mode not in ("pad", "square", "none"):
            raise ValueError(f"image mode {self.mode!r} is unknown; choose pad, square or none.")
        if self.mode != "none" and (self.size < 1 or self.size % self.multiple):
            raise ValueError(
                f"image size {self.size} is not a multiple of the patch size {self.multiple}."
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """Return normalised pixels `[3, H, W]`.

        Raises:
            DataError: In mode `none`, if a side of the image is not a multiple of the patch size.
        """
        image = image.convert("RGB")
        match self.mode:
            case "pad":
                image = self._square_canvas(image).resize(
                    (self.size, self.size), Image.Resampling.BICUBIC
                )
            case "square":
                image = self._centre_square(image)
            case "none":
                self._check_patches(image)
        pixels = np.asarray(image, dtype=np.float32) / 255
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def _square_canvas(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = max(width, height)
        red, green, blue = (int(value * 255) for value in self.mean)
        canvas = Image.new("RGB", (side, side), (red, green, blue))
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        return canvas

    def _centre_square(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        new = (int(self.size * width / short), int(self.size * height / short))
        left, top = (new[0] - self.size) // 2, (new[1] - self.size) // 2
        resized = image.resize(new, Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + self.size, top + self.size))

    def _check_patches(self, image: Image.Image) -> None:
        if image.width % self.multiple or image.height % self.multiple:
            raise DataError(
                f"an image of {image.height} x {image.width} pixels cannot be cut into patches of"
                f" {self.multiple}; use image mode pad or square, or resize the file."
            )
