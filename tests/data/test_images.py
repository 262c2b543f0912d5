import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dpn.data.batch import DataError
from dpn.data.images import CLIP_MEAN, CLIP_STD, ImageTransform, open_image


def picture(width, height, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


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


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_colour_mode_is_read_as_rgb(tmp_path, mode):
    name = "a.tif" if mode == "CMYK" else "a.png"
    picture(8, 8, mode).save(tmp_path / name)
    assert open_image(tmp_path, name).mode == "RGB"


def test_only_images_inside_the_folder_are_opened(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    picture(8, 8).save(root / "sub" / "in.png")
    picture(8, 8).save(tmp_path / "out.png")
    (root / "link.png").symlink_to(tmp_path / "out.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "inner.png").symlink_to(root / "sub" / "in.png")
    for name in ("sub/in.png", "sub/../sub/in.png", "inner.png"):
        assert open_image(root, name).size == (8, 8)
    outside = ("../out.png", "sub/../../out.png", "link.png", "folder/out.png")
    for name in (*outside, str(tmp_path / "out.png"), str(root / "sub" / "in.png")):
        with pytest.raises(DataError, match=r"lies outside the image folder .*; move it inside"):
            open_image(root, name)


def test_broken_images_are_named(tmp_path):
    picture(64, 64).save(tmp_path / "good.png")
    picture(64, 64).save(tmp_path / "good.jpg")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    for name in ("png", "jpg"):
        content = (tmp_path / f"good.{name}").read_bytes()
        (tmp_path / f"cut.{name}").write_bytes(content[: len(content) // 2])
    flipped = bytearray((tmp_path / "good.png").read_bytes())
    flipped[60:70] = b"0123456789"
    (tmp_path / "flipped.png").write_bytes(flipped)
    problems = {
        "missing.png": "does not exist",
        "empty.png": "corrupt: the file is empty",
        **dict.fromkeys(["text.png", "cut.png", "cut.jpg", "flipped.png"], "corrupt or truncated"),
    }
    for name, problem in problems.items():
        with pytest.raises(
            DataError, match=f"image .*{name} {problem}|image .*{name} is {problem}"
        ):
            open_image(tmp_path, name)
    for name in (None, "", 3, "a\0b"):
        with pytest.raises(DataError, match="must be a path relative to"):
            open_image(tmp_path, name)


def test_a_missing_file_is_looked_up_under_other_extensions_inside_the_folder(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    picture(9, 8).save(root / "1.0.gif")
    picture(7, 8).save(root / "renamed.gif")
    (root / "renamed.gif").rename(root / "renamed.jpg")
    assert open_image(root, "1.0.jpg").size == (9, 8)
    assert open_image(root, "renamed.jpg").size == (7, 8)
    picture(5, 5).save(root / "1.0.jpg")
    assert open_image(root, "1.0.jpg").size == (5, 5)  # its own extension comes first
    picture(9, 8).save(tmp_path / "out.gif")
    (root / "link.gif").symlink_to(tmp_path / "out.gif")
    with pytest.raises(DataError, match=r"'link.jpg' lies outside"):
        open_image(root, "link.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg does not exist"):
        open_image(root, "gone.jpg")
    for name in ("x" * 300, "\ud83d.jpg"):
        with pytest.raises(DataError, match="cannot be looked up"):
            open_image(root, name)
