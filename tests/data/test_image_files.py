"""Image files of every kind: what is read, at which pixels, and what is refused by which error."""

import base64
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dpn.benchmarks._files import decoded, image_of
from dpn.data.batch import DataError
from dpn.data.image_files import decode_image, load_image, open_image, remarks, to_rgb
from dpn.data.image_rules import (
    OFFICIAL,
    CorruptImageError,
    ImageRules,
    ImageValuesError,
    LargeImageError,
    MissingImageError,
)
from dpn.data.images import ImageTransform
from tests.data.conftest import picture

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], -1)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_colour_mode_is_read_as_rgb(tmp_path, mode):
    name = "a.tif" if mode == "CMYK" else "a.png"
    picture(8, 8, mode).save(tmp_path / name)
    assert open_image(tmp_path, name).mode == "RGB"


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
        "missing.png": " does not exist",
        "empty.png": " is corrupt: the file is empty",
        **dict.fromkeys(["cut.png", "cut.jpg", "flipped.png"], " is corrupt or truncated"),
        "text.png": " is corrupt or truncated, or of a format that is not read",
    }
    for name, problem in problems.items():
        with pytest.raises(DataError, match=f"image .*{name}{problem}"):
            open_image(tmp_path, name)
    for name in (None, "", 3, "a\0b"):
        with pytest.raises(DataError, match="must be a path relative to"):
            open_image(tmp_path, name)


def test_no_format_that_starts_another_program_is_tried(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    content = (tmp_path / "x.eps").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content)
    doors = [
        lambda: open_image(tmp_path, "x.jpg"),
        lambda: open_image(tmp_path, "x.jpg", OFFICIAL),
        image_of(tmp_path, "x.jpg"),
        lambda: decoded(content, "entry 1"),
        lambda: load_image(str(tmp_path / "x.jpg")),
        lambda: load_image("data:image/jpeg;base64," + base64.b64encode(content).decode()),
    ]
    for door in doors:
        with pytest.raises(CorruptImageError, match="of a format that is not read"):
            door()
    assert not ran.exists()


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "setting"),
    [
        ((1, 60_000), "a side ratio of 100.*image_max_ratio"),
        ((1_000_000, 1), "image_max_ratio"),
        ((300, 30_000), "of the square around it.*image_max_pixels"),
        ((13_000, 13_000), "50000000 pixels.*image_max_pixels"),
        ((20_000, 20_000), "too large for the memory or for Pillow"),
    ],
)
def test_sizes_are_checked_before_decoding(size, setting, tmp_path, monkeypatch):
    write_empty_png(tmp_path / "x.png", size)  # decoding would fail
    with pytest.raises(LargeImageError, match=setting):
        open_image(tmp_path, "x.png")
    with pytest.raises(LargeImageError, match=setting):
        load_image(str(tmp_path / "x.png"))


def write_empty_png(path, size):
    """Write a PNG that announces a size, but holds no pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    )
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )


def test_limits_can_be_changed(tmp_path):
    picture(40, 10).save(tmp_path / "x.png")
    assert open_image(tmp_path, "x.png", ImageRules(max_pixels=400, max_ratio=4)).size == (40, 10)
    for rules in (ImageRules(max_pixels=399), ImageRules(max_ratio=3.9), ImageRules(max_pixels=99)):
        with pytest.raises(LargeImageError, match=r"40 x 10 pixels; the limit is"):
            open_image(tmp_path, "x.png", rules)
    with pytest.raises(LargeImageError, match="side ratio"):
        load_image(Image.new("L", (1, 500)))
    assert ImageRules().check() == []
    for rules, words in (
        (ImageRules(max_pixels=0), "image_max_pixels=0"),
        (ImageRules(max_ratio=0.5), "image_max_ratio=0.5"),
        (ImageRules(max_ratio=float("nan")), "image_max_ratio=nan"),
        (ImageRules(background="whit"), "image_background=whit` is not a colour"),
    ):
        (problem,) = rules.check()
        assert words in problem


def test_lack_of_memory_is_an_error_of_the_image(tmp_path, monkeypatch):
    picture(3, 3).save(tmp_path / "x.png")

    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(LargeImageError, match="too large for the memory"):
        open_image(tmp_path, "x.png")


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["8.png", "16.png", "16.tif", "16.pgm", "big-endian.tif", "float.tif", "12.tif"]
)
def test_greys_of_every_depth_are_the_same_picture(name, tmp_path):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    if name == "8.png":
        Image.fromarray(RAMP).save(tmp_path / name)
    elif name == "float.tif":
        Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / name)
    elif name == "big-endian.tif":
        data = RAMP.astype(np.int64) * 257
        image = Image.frombytes("I;16B", (64, 64), data.astype(">u2").tobytes())
        image.save(tmp_path / name)
    elif name == "12.tif":
        write_12_bits(tmp_path / name)
    else:
        deep.save(tmp_path / name)
    got = np.asarray(open_image(tmp_path, name)).astype(int)
    np.testing.assert_allclose(got, np.stack([RAMP] * 3, -1), atol=1 if name == "12.tif" else 0)


def write_12_bits(path):
    """Write the ramp as a TIFF with 12 bits per pixel: two pixels in three bytes."""
    values = (RAMP.astype(np.uint32) * 4095 + 127) // 255
    left, right = values[:, ::2], values[:, 1::2]
    packed = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], -1)
    data = packed.astype(np.uint8).tobytes()
    tags = {256: 64, 257: 64, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    table = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (RAMP.astype(np.int32) * 257, "holds 32-bit integers"),
        (RAMP.astype(np.float32), "holds floating point values from 0 to 252"),
        (RAMP.astype(np.float32) / 255 - 0.5, "holds floating point values from -0.5"),
        (np.full((4, 4), np.nan, np.float32), "holds floating point values from nan"),
    ],
)
def test_values_of_unknown_range_are_refused(values, sentence, tmp_path):
    image = Image.fromarray(values)
    image.save(tmp_path / "x.tif")
    with pytest.raises(ImageValuesError, match=rf"x\.tif {sentence}"):
        open_image(tmp_path, "x.tif")
    with pytest.raises(ImageValuesError, match=f"the image {sentence}"):
        ImageTransform("pad", 28)(image)


def ink(mode):
    """Return black strokes on a transparent ground, in which the hidden colour is black, too."""
    alpha = np.zeros((64, 64), np.uint8)
    alpha[20:44, 28:36] = 255
    black = Image.fromarray(np.zeros((64, 64), np.uint8))
    image = Image.merge("LA", (black, Image.fromarray(alpha)))
    return image.convert("RGBA").quantize() if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_show_the_background(mode, tmp_path):
    ink(mode).save(tmp_path / "x.png")
    for rules, ground in ((ImageRules(), 255), (ImageRules(background="#0000ff"), (0, 0, 255))):
        got = np.asarray(open_image(tmp_path, "x.png", rules))
        assert (got[0, 0] == ground).all()
        assert (got[30, 30] == 0).all()
    assert to_rgb(ink(mode)).getpixel((0, 0)) == (255, 255, 255)


def test_a_grey_that_stands_for_transparency_shows_the_background(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "8.png", transparency=0)
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "16.png", transparency=0)
    for name in ("8.png", "16.png"):
        got = np.asarray(open_image(tmp_path, name))
        assert got[0, 0].tolist() == [255] * 3
        np.testing.assert_array_equal(got[:, 1:, 0], RAMP[:, 1:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_turned_upright_once_as_by_hugging_face(orientation, suffix, tmp_path):
    from transformers.image_utils import load_image as load

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOURS[:, :32]).save(path, exif=exif)
    got = open_image(tmp_path, path.name)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(load(str(path))))
    assert to_rgb(got).tobytes() == got.tobytes()
    with Image.open(path) as opened:
        assert to_rgb(opened).tobytes() == got.tobytes()
        assert to_rgb(ImageOps.exif_transpose(opened)).tobytes() == got.tobytes()


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    first, second = Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)
    for name in ("x.webp", "x.png", "x.tif"):
        options = {"lossless": True} if name == "x.webp" else {}
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path, name)), COLOURS)


def test_official_pixels_are_those_of_convert(tmp_path):
    """The official code of LLaVA and of the benchmarks calls `Image.open(...).convert("RGB")`."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS[:, :32]).save(tmp_path / "exif.jpg", exif=exif)
    ink("RGBA").save(tmp_path / "ink.png")
    ink("P").save(tmp_path / "palette.png")
    Image.fromarray(RAMP).save(tmp_path / "key.png", transparency=0)
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    picture(8, 8, "CMYK").save(tmp_path / "cmyk.jpg")
    transform = ImageTransform("none", multiple=1)
    for name in ("exif.jpg", "ink.png", "palette.png", "key.png", "deep.png", "cmyk.jpg"):
        with Image.open(tmp_path / name) as image:
            official = image.convert("RGB")
        content = (tmp_path / name).read_bytes()
        for got in (image_of(tmp_path, name)(), decoded(content, name)):
            assert got.tobytes() == official.tobytes()
            bare = Image.frombytes("RGB", official.size, official.tobytes())
            assert (transform(got) == transform(bare)).all()


def test_remarks_name_what_a_user_may_not_have_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(COLOURS).save(tmp_path / "fine.png")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "flat.png")
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(COLOURS).save(tmp_path / "turned.jpg", exif=exif)
    found = {path.stem: remarks(path) for path in tmp_path.iterdir()}
    assert found == {
        "fine": [],
        "flat": ["image of one colour"],
        "clear": ["wholly transparent image"],
        "deep": ["image of more than 8 bits, scaled"],
        "turned": ["image with an EXIF orientation, rotated"],
    }
    released = ImageRules(released=True)
    assert remarks(tmp_path / "turned.jpg", released) == ["image with an EXIF orientation, ignored"]


def test_the_processor_opens_files_as_training_does(tmp_path):
    ink("RGBA").save(tmp_path / "ink.png")
    content = base64.b64encode((tmp_path / "ink.png").read_bytes()).decode()
    expected = open_image(tmp_path, "ink.png").tobytes()
    for source in (str(tmp_path / "ink.png"), content, f"data:image/png;base64,{content}"):
        assert load_image(source).tobytes() == expected
    with Image.open(tmp_path / "ink.png") as opened:
        assert load_image(opened).tobytes() == expected
    with pytest.raises(MissingImageError, match="is neither a file, nor an http"):
        load_image("gone.png")
    with pytest.raises(CorruptImageError):
        decode_image(b"", "x")
