"""InternVL in Hugging Face's format: square tiles, and an overview if there are several."""

from typing import Any

from dpn.families.base import TiledFamily
from dpn.tokens import Grid


class InternVL(TiledFamily):
    """The tiles of an image follow each other in one run of columns; how they are arranged is known
    to the processor only. A frame of a video is an image.
    """

    model_types = ("internvl",)

    def tile(self, config: Any) -> Grid:
        vision = config.vision_config
        height, width = (
            int(size // patch * config.downsample_ratio)
            for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
        )
        return height, width
