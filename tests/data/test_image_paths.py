"""Names of images in rows: which files they find, and why they find none."""

import os

import pytest
from PIL import Image

from dpn.data.batch import DataError
from dpn.data.image_files import open_image
from dpn.data.image_rules import MissingImageError, OutsideImageError
from tests.data.conftest import picture


def test_only_images_inside_the_folder_are_opened(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    picture(8, 8).save(root / "sub" / "in.png")
    picture(8, 8).save(tmp_path / "out.png")
    (root / "link.png").symlink_to(tmp_path / "out.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "inner.png").symlink_to(root / "sub" / "in.png")
    for name in ("sub/in.png", "sub/../sub/in.png", "inner.png", str(root / "sub" / "in.png")):
        assert open_image(root, name).size == (8, 8)
    outside = ("../out.png", "sub/../../out.png", "link.png", "folder/out.png")
    for name in (*outside, str(tmp_path / "out.png"), "/", "//", "/etc/passwd", ".."):
        with pytest.raises(OutsideImageError, match=r"lies outside the image folder .*; move it"):
            open_image(root, name)


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


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("2024.01", "2024.01.jpg"),
        ("report_v1.5.GIF", "report_v1.5.png"),
        ("report_v1.5", "report_v1.5.png"),
        *((name, None) for name in ("report_v1.5_page3", "report_v1.6", "a.mp4", "a.txt")),
        *((name, None) for name in ("2024.01.02", "a.jpg.png", "a.v2", "2024")),
    ],
)
def test_a_missing_file_is_never_replaced_by_one_whose_name_only_starts_alike(
    name, found, tmp_path
):
    for number, file in enumerate(("a.jpg", "report_v1.5.png", "report_v1.png", "2024.01.jpg")):
        Image.new("RGB", (number + 1, 1)).save(tmp_path / file)
    if found is None:
        with pytest.raises(MissingImageError, match="does not exist"):
            open_image(tmp_path, name)
    else:
        assert open_image(tmp_path, name).size == Image.open(tmp_path / found).size


def test_names_that_lead_to_no_picture_say_why(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.d").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    causes = {
        **dict.fromkeys(["folder", "folder.d", ".", "pipe.png"], "a folder or a special file"),
        "device.png": "lies outside",
        **dict.fromkeys(["a.png", "x" * 300, "a/" * 5000, "\ud83d.jpg"], "cannot be looked up"),
        **dict.fromkeys(
            ["gone.png", "a.png\n", "A.PNG", "pipe.png/x.png"], "does not exist|cannot"
        ),
        "folder\\c.png": "write / between folders",
        "https://example.com/a.png": "is an address; download it",
        "data:image/png;base64," + "iVBORw0KGgo" * 99: "is an address",
    }
    for name, cause in causes.items():
        with pytest.raises(DataError, match=cause) as caught:
            open_image(tmp_path, name)
        assert len(str(caught.value)) < 600
    for name in (None, "", 3, True, "a\0b", ["a.png"], {"path": "a.png"}):
        with pytest.raises(MissingImageError, match="must be a path relative to"):
            open_image(tmp_path, name)


@pytest.mark.parametrize("stored", ["\u00fcn\u00ef.png", "u\u0308ni\u0308.png"])
def test_names_are_found_in_both_unicode_normal_forms(stored, tmp_path):
    picture(3, 3).save(tmp_path / stored)
    for name in (
        "\u00fcn\u00ef.png",
        "u\u0308ni\u0308.png",
        "\u00fcn\u00ef.jpg",
        "u\u0308ni\u0308.jpg",
    ):
        assert open_image(tmp_path, name).size == (3, 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path):
    picture(3, 3).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(MissingImageError, match=r"a\.png cannot be read \(Permission denied\)"):
        open_image(tmp_path, "a.png")
