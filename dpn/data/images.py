"""Convert images to normalised pixels as LLaVA does, without torchvision."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dpn.common.errors import SettingError
from dpn.common.ranges import Range, is_number
from dpn.common.text import shorten
from dpn.data.batch import DataError
from dpn.data.image_files import open_image, read_image, to_rgb
from dpn.data.image_rules import CorruptImageError, MissingImageError, OutsideImageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ImageMode = Literal["pad", "square", "none"]
STRIP = 2**24
"""Pixels of a square canvas that exist at a time."""

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "CorruptImageError",
    "ImageMode",
    "ImageTransform",
    "MissingImageError",
    "OutsideImageError",
    "open_image",
    "read_image",
]


#: Largest height and width of a model's images.
MOST_PIXELS = 16384


#: Ranges of the mean and the standard deviation of a channel, whose values are in [0, 1].
STATISTICS = {"mean": Range(0, 1), "std": Range(1e-6, 1e6)}


def are_statistics(name: str, values: Any) -> bool:
    """Whether values are a possible `mean` or `std` of red, green and blue, by its name."""
    listed = isinstance(values, list | tuple) and len(values) == 3
    return listed and all(is_number(value, STATISTICS[name]) for value in values)


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
            raise SettingError(f"image mode {self.mode!r} is unknown; choose pad, square or none.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not are_statistics(name, values):
                raise SettingError(
                    f"image_{name}={shorten(repr(values), 80)} is not possible; it must be three"
                    f" numbers, one for each of red, green and blue, {STATISTICS[name]}."
                )
        for name, value in (("image_size", self.size), ("patch_size", self.multiple)):
            if type(value) is not int or not 1 <= value <= MOST_PIXELS:
                raise SettingError(
                    f"{name}={shorten(repr(value), 80)} is not possible; it must be a whole number"
                    f" from 1 to {MOST_PIXELS}."
                )
        if self.mode != "none" and self.size % self.multiple:
            raise SettingError(
                f"image size {self.size} is not a multiple of the patch size {self.multiple}."
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """Return normalised pixels `[3, H, W]`.

        Raises:
            DataError: In mode `none`, if a side of the image is not a multiple of the patch size;
                in all modes, if its values have no known range (see `to_rgb`) or there is not
                enough memory.
        """
        try:
            return self._normalised(self._fitted(to_rgb(image)))
        except MemoryError as error:
            raise DataError(
                f"an image of {image.height} x {image.width} pixels needs more memory than there"
                " is; resize the file."
            ) from error

    def _fitted(self, image: Image.Image) -> Image.Image:
        match self.mode:
            case "pad":
                return self._padded_square(image)
            case "square":
                return self._centre_square(image)
            case "none":
                self._check_patches(image)
        return image

    def _normalised(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image, dtype=np.float32) / 255
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def _padded_square(self, image: Image.Image) -> Image.Image:
        """Paste an image on a square canvas of the mean colour and resize it.

        Pillow resizes rows first and columns after that, so the canvas is made a strip of rows at a
        time, with the same result: as a whole, it would take gigabytes for a long thin image.
        """
        width, height = image.size
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        red, green, blue = (int(value * 255) for value in self.mean)
        narrow = Image.new("RGB", (self.size, side))
        step = max(1, STRIP // side)
        for start in range(0, side, step):
            rows = min(step, side - start)
            strip = Image.new("RGB", (side, rows), (red, green, blue))
            strip.paste(image, (left, top - start))
            strip = strip.resize((self.size, rows), Image.Resampling.BICUBIC)
            narrow.paste(strip, (0, start))
        return narrow.resize((self.size, self.size), Image.Resampling.BICUBIC)

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
