import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import dpn.data.images
from dpn.data.batch import DataError
from dpn.data.images import CLIP_MEAN, CLIP_STD, ImageTransform
from tests.data.conftest import picture


def clip(image, size):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    return torch.from_numpy(np.asarray(processor(image).pixel_values[0]))


@pytest.mark.parametrize("size", [(40, 30), (31, 47), (28, 28), (20, 90)])
def test_square_equals_clip_of_hugging_face(size):
    image = picture(*size)
    got = ImageTransform("square", 28)(image)
    torch.testing.assert_close(got, clip(image, 28), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (31, 48), (28, 28)])
def test_pad_equals_clip_on_a_canvas_of_the_mean_colour(width, height):
    image = picture(width, height)
    side = max(width, height)
    canvas = np.full((side, side, 3), (122, 116, 104), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(image)
    got = ImageTransform("pad", 28)(image)
    torch.testing.assert_close(got, clip(Image.fromarray(canvas), 28), atol=1e-5, rtol=0)


def test_none_keeps_size_and_pixels_and_wants_whole_patches():
    image = picture(28, 14)
    got = ImageTransform("none", multiple=14)(image)
    assert got.shape == (3, 14, 28)
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    back = ((got * std + mean) * 255).round().permute(1, 2, 0).byte().numpy()
    np.testing.assert_array_equal(back, np.asarray(image))
    with pytest.raises(DataError, match="14 x 27 pixels cannot be cut into patches of 14"):
        ImageTransform("none", multiple=14)(picture(27, 14))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mode": "crop"}, "mode 'crop' is unknown; choose pad, square or none"),
        ({"size": 100, "multiple": 14}, "size 100 is not a multiple of the patch size 14"),
    ],
)
def test_impossible_recipes_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ImageTransform(**arguments)


@pytest.mark.parametrize("size", [(300, 7), (7, 300), (211, 210), (1, 999)])
def test_a_canvas_in_strips_gives_the_same_pixels_as_a_whole_one(size, monkeypatch):
    image = picture(*size)
    side = max(size)
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    whole = ImageTransform("none", multiple=28)(canvas.resize((28, 28), Image.Resampling.BICUBIC))
    for pixels in (1, 5 * side, 2**24):
        monkeypatch.setattr(dpn.data.images, "STRIP", pixels)
        assert torch.equal(ImageTransform("pad", 28)(image), whole)
