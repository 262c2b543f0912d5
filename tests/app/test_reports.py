"""Pictures and tables that are made from rows, without a model."""

import numpy as np
import pytest
from PIL import Image

from dpn.reports.differences import differences
from dpn.reports.overlays import SIDE, draw_overlay, read_overlay, to_pixels


def row(number, score, answer="a", family="x", share=0.5):
    return {
        "benchmark": "pope",
        "id": number,
        "prompt": "Is it?",
        "reference": "a",
        "answer": answer,
        "score": score,
        "family": family,
        "base_rows": 4,
        "visual_macs_ratio": share,
        "route": {"1": "2x2"},
    }


def test_what_went_better_and_what_worse():
    mine = [row(0, 1.0), row(1, 0.0, "b"), row(2, 1.0), row(3, 1.0, family="y"), row(9, 1.0)]
    theirs = [row(n, score, "c", share=1.0) for n, score in enumerate([0.0, 1.0, 1.0, 0.0])]
    counts, changed = differences(mine, theirs, "none")
    assert counts.body == (
        ("pope, x", "3", "1", "1", "0.500", "1.000"),
        ("pope, y", "1", "1", "0", "0.500", "1.000"),
    )
    assert [line[0] for line in changed.body] == ["0", "1", "3"]
    assert changed.body[1][2:] == ("a", "b", "c", "1: 2x2")
    assert len(differences(mine, mine, "itself")) == 1


def test_long_answers_are_shown_where_they_part():
    numbers = "0123456789" * 4
    mine, theirs = row(0, 0.5, numbers + "1"), row(0, 1.0, numbers + "2")
    _, changed = differences([{**mine, "reference": numbers + "2"}], [theirs], "none")
    assert changed.body[0][2:5] == ("…4567892", "…4567891", "…4567892")


def test_questions_that_only_one_was_asked_or_that_have_no_score_do_not_count():
    (counts,) = differences([row(0, None), row(1, 1.0)], [row(0, 1.0), row(2, 0.0)], "none")
    assert counts.body == ()


@pytest.fixture
def picture(tmp_path):
    """What is drawn of two layers: four cells with a row each, then one row for two of them."""
    owners = [np.array([[0, 1], [2, 3]]), np.array([[0, 0], [-1, -1]])]
    pixels = np.full((8, 8, 3), 200, dtype=np.uint8)
    draw_overlay(pixels, owners, ["question", "answer"], tmp_path / "overlay.png")
    return np.asarray(Image.open(tmp_path / "overlay.png")).astype(int)


def test_a_panel_for_the_image_and_each_change(picture):
    assert picture.shape[1] == 3 * SIDE
    panel = SIDE - 6
    top = picture.shape[0] - 14 - SIDE
    image, whole, pooled = (picture[top:, n * SIDE :][:panel, :panel] for n in range(3))
    assert (image == 200).all()
    quarter, half = panel // 4, panel // 2
    assert tuple(whole[quarter, half]) == (255, 0, 255)  # between the upper cells
    assert tuple(pooled[quarter, half]) == (200, 200, 200)  # which share a row now
    assert tuple(pooled[3 * quarter, quarter]) == (110, 110, 110)  # gone


def test_a_picture_gives_its_panels_and_words_back(picture, tmp_path):
    panels, words = read_overlay(tmp_path / "overlay.png")
    assert words == ["question", "answer"]
    assert list(panels) == ["image", "layer 0: 4 rows", "layer 1: 1 rows"]
    assert (np.asarray(panels["image"]) == 200).all()
    half = (SIDE - 6) // 2
    assert panels["layer 0: 4 rows"].getpixel((half, half // 2)) == (255, 0, 255)
    assert panels["layer 1: 1 rows"].getpixel((half // 2, half + half // 2)) == (110, 110, 110)


def test_pixels_come_back_from_what_the_model_sees():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    normal = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    assert np.abs(to_pixels(normal, mean, std).astype(int) - pixels).max() <= 1
