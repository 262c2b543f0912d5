"""Images as Hugging Face's processors take them: PIL images, files, URLs, arrays and tensors."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_transforms import to_pil_image

from dpn.data.batch import DataError
from dpn.data.conversation import IMAGE
from dpn.data.image_files import load_image


def in_order(text: Any, images: Any) -> tuple[Any, Any]:
    """Return (text, images) if they were given in Hugging Face's order, images first."""
    both = _is_text(text) and _is_text(images)
    if both and _marks(images) and not _marks(text):  # names of files, and prompts
        return images, text
    if _holds_pixels(text) and (images is None or _is_text(images)):
        return images, text
    return text, images


def group_images(images: Any, texts: Sequence[str]) -> list[list[Any]]:
    """Group images by text.

    Args:
        images: One image, a flat list in the order of the `<image>` marks, one list per text, a
            batch `[I, 3, H, W]` or `[I, H, W, 3]`, or None.
        texts: Texts with one mark per image.

    Raises:
        DataError: If marks and images do not match.
    """
    marks = [text.count(IMAGE) for text in texts]
    images = [] if images is None else [images] if _is_one(images) else list(images)
    if all(map(_is_one, images)):
        flat = iter(images)
        nested = [list(islice(flat, count)) for count in marks]
        nested[-1].extend(flat)
    else:
        nested = [[] if own is None else [own] if _is_one(own) else list(own) for own in images]
    if [len(own) for own in nested] != marks:
        raise DataError(
            f"The prompts have {marks} {IMAGE} marks, but {[len(own) for own in nested]} images"
            " were given; give exactly one image for each mark."
        )
    return nested


def as_pil(image: Any, data_format: str | None = None) -> Image.Image:
    """Convert an image to PIL.

    Args:
        image: PIL image, file name, URL, or array or tensor with 1 or 3 channels first or last,
            integers in [0, 255] or floats in [0, 1].
        data_format: `channels_first` or `channels_last` of an array; default: inferred.

    Raises:
        DataError: If it is none of these, or too large.
    """
    if isinstance(image, str | Path | Image.Image):
        return load_image(image)
    if torch.is_tensor(image):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"An image is a {type(image).__name__}; give a PIL image, a file, a URL, an array or a"
            " tensor."
        )
    shape = image.shape
    if image.dtype == bool:
        image = image.astype(np.float32)
    # Hugging Face's own rule reads floats that are all 0 or 1 as integers, so as black.
    unit = image.dtype.kind == "f" and image.size > 0 and image.min() >= 0 and image.max() <= 1
    if image.ndim == 2:
        image, data_format = image[..., None], "channels_last"
    try:
        made = to_pil_image(image, do_rescale=unit or None, input_data_format=data_format)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"An image of shape {list(shape)} and type {image.dtype} cannot be read ({error}); give"
            " integers in [0, 255] or floats in [0, 1], with 1 or 3 channels first or last."
        ) from error
    return load_image(made)


def _is_one(value: Any) -> bool:
    """Return whether a value is one image, rather than a list or batch of images."""
    if isinstance(value, list | tuple) or value is None:
        return False
    return not (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 4)


def _is_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, str)


def _marks(value: Any) -> int:
    return sum(text.count(IMAGE) for text in ([value] if isinstance(value, str) else value))


def _holds_pixels(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_pixels, value))
    return isinstance(value, Image.Image | np.ndarray | torch.Tensor)
