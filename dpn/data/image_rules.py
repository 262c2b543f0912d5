"""Rules for reading image files, and the errors of images that break them."""

from dataclasses import dataclass

from dpn.data.batch import DataError

#: Pillow refuses larger pictures itself.
PILLOW_PIXELS = 178_956_970
#: The square around a picture, on which mode `pad` pastes it, may be larger by this factor.
SQUARE = 8


class ImageError(DataError):
    """An image cannot be used.

    Attributes:
        kind: Words for a group of such errors in a report.
    """

    kind = "image that cannot be used"


class OutsideImageError(ImageError):
    """An image's path points outside the image folder."""

    kind = "image outside of the folder"


class MissingImageError(ImageError):
    """An image file does not exist or may not be read."""

    kind = "missing image"


class CorruptImageError(ImageError):
    """An image file cannot be decoded."""

    kind = "corrupt image"


class LargeImageError(ImageError):
    """An image has too many pixels, or is too long for its width."""

    kind = "image that is too large"


class ImageValuesError(ImageError):
    """The values of an image have no known range."""

    kind = "image with values of an unknown range"


@dataclass(frozen=True)
class ImageRules:
    """How image files are read.

    Attributes:
        max_pixels: Largest number of pixels. The square around the picture may have 8 times as
            many.
        max_ratio: Largest ratio of the longer to the shorter side.
        background: Colour behind transparent pixels, a name or `#rrggbb`.
        released: Whether pictures are converted as the code of LLaVA and of the benchmarks does,
            with Pillow's `convert("RGB")` alone: the EXIF orientation is ignored, transparent
            pixels show the colour that they hide (often black), more than 8 bits are clipped.
    """

    max_pixels: int = 50_000_000
    max_ratio: float = 100
    background: str = "white"
    released: bool = False

    def check(self) -> list[str]:
        """Return an error sentence for each rule that is not possible; keys as in `data`."""
        problems = []
        if not 1 <= self.max_pixels <= PILLOW_PIXELS:
            problems.append(
                f"`data.image_max_pixels={self.max_pixels}` is not possible; it can be 1 to"
                f" {PILLOW_PIXELS}."
            )
        if not self.max_ratio >= 1:
            problems.append(
                f"`data.image_max_ratio={self.max_ratio}` is not possible; it can be at least 1."
            )
        from PIL import ImageColor  # here, as models are also used without Pillow

        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            problems.append(
                f"`data.image_background={self.background}` is not a colour; give a name such as"
                " white, or '#rrggbb'."
            )
        return problems

    def check_size(self, width: int, height: int, name: str) -> None:
        """Check the size of an image.

        Raises:
            LargeImageError: If it is too large; names the image and the setting.
        """
        short, long = sorted((width, height))
        if width * height > self.max_pixels:
            limit, setting = f"{self.max_pixels} pixels", "image_max_pixels"
        elif long > self.max_ratio * short:
            limit, setting = f"a side ratio of {self.max_ratio:g}", "image_max_ratio"
        elif long**2 > SQUARE * self.max_pixels:
            limit = f"{SQUARE * self.max_pixels} pixels of the square around it"
            setting = "image_max_pixels"
        else:
            return
        raise LargeImageError(
            f"{name} has {width} x {height} pixels; the limit is {limit}: resize or crop the file"
            f" or, for a data set, raise `data.{setting}`."
        )


OWN = ImageRules()
"""Rules for pictures of users."""
OFFICIAL = ImageRules(max_pixels=PILLOW_PIXELS, max_ratio=1000, released=True)
"""Rules for the pictures of benchmarks: the pixels that the official code sees."""
