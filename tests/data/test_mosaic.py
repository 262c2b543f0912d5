import json
import multiprocessing
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import dpn.data
from dpn.data.index import open_index
from dpn.data.rows import Conversations, FileRows
from dpn.data.sources.base import Source
from dpn.data.sources.mosaic import Mosaic, is_complete
from dpn.data.tokenizer import train_tokenizer
from dpn.model import DPNProcessor

SIZES = {"train_images": 12, "val_images": 4}
WORDS = {"two": 2, "six": 6, "ten": 10, "fourteen": 14}
CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
COLOURS = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    mosaic = Mosaic(root=str(tmp_path_factory.mktemp("data")), **SIZES)
    mosaic.prepare()
    return mosaic


@pytest.fixture(scope="module")
def known_digits():
    """Ink of a digit image to its number and label, straight from scikit-learn."""
    digits = load_digits()
    return {
        image.astype(int).tobytes(): (number, label)
        for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True))
    }


def look(path, known_digits):
    """Read a PNG: colour of each quadrant, and number and label of each cell's digit image."""
    pixels = np.asarray(Image.open(path)).astype(float)
    half, side = len(pixels) // 2, len(pixels) // 8
    colours, numbers, labels = {}, np.full((2, side, side), -1), None
    for place, (row, column) in CORNERS.items():
        part = pixels[row * half :, column * half :][:half, :half]
        tint = part.reshape(-1, 3).min(0)
        colours[place] = COLOURS[tuple((tint > tint.mean()).astype(int).tolist())]
        ink = ((part - tint) / (255 - tint) * 16).round().astype(int)
        assert (ink == ink[..., :1]).all()
        for i, j in np.ndindex(side // 2, side // 2):
            cell = ink[8 * i : 8 * i + 8, 8 * j : 8 * j + 8, 0]
            if cell.any():
                at = (row * side // 2 + i, column * side // 2 + j)
                numbers[:, *at] = known_digits[cell.tobytes()]
    numbers, labels = numbers
    return colours, numbers, labels


def reading(labels):
    return "".join(str(label) for label in labels.ravel() if label >= 0)


def rows_of(mosaic, name, stage):
    return json.loads((mosaic.folder / f"{name}-{stage}.json").read_text())


def place_in(text):
    (place,) = (place for place in CORNERS if place in text)
    return place


@pytest.mark.parametrize("name", ["train", "val"])
def test_every_answer_is_what_the_pixels_show(name, mosaic, known_digits):
    turns_seen = set()
    for row in rows_of(mosaic, name, "questions"):
        colours, _, labels = look(mosaic.folder / row["image"], known_digits)
        messages = row["conversations"]
        asked = [turn["value"].removeprefix("<image>\n") for turn in messages[::2]]
        answers = [turn["value"] for turn in messages[1::2]]
        # No question comes twice, so that no answer can be read off an earlier one.
        assert len(set(asked)) == len(asked)
        assert messages[0]["value"].startswith("<image>\n")
        assert sum(turn["value"].count("<image>") for turn in messages) == 1
        match row["family"]:
            case "coarse":
                assert len(asked) == 4
                assert answers == [colours[place_in(question)] for question in asked]
                assert row["difficulty"] == 0
            case "medium":
                counts = []
                for question in asked:
                    i, j = CORNERS[place_in(question)]
                    counts.append(int((labels[4 * i :, 4 * j :][:4, :4] >= 0).sum()))
                assert [WORDS[answer] for answer in answers] == counts
                assert row["difficulty"] == sum(counts)
            case "fine":
                assert (labels >= 0).all()
                height = int(asked[0].split()[3])
                assert asked == [f"Read the first {height} rows.", "Read the rest."][: len(asked)]
                parts = [labels[:height], labels[height:]][: len(asked)]
                assert answers == list(map(reading, parts))
                assert row["difficulty"] == sum(part.size for part in parts)
                turns_seen.add(len(asked))
    assert turns_seen == {1, 2}


def test_families_come_as_often_as_the_mix_says(tmp_path):
    mosaic = Mosaic(root=str(tmp_path), mix={"coarse": 4, "medium": 0, "fine": 2}, **SIZES)
    mosaic.prepare()
    families = [row["family"] for row in rows_of(mosaic, "train", "questions")]
    assert families == ["coarse"] * 4 + ["fine"] * 2 + ["coarse"] * 4 + ["fine"] * 2
    families = [row["family"] for row in rows_of(mosaic, "val", "questions")]
    assert families == ["coarse", "medium", "fine"] * 4


@pytest.mark.parametrize("name", ["train", "val"])
def test_captions_read_the_whole_mosaic(name, mosaic, known_digits):
    for row in rows_of(mosaic, name, "captions"):
        *_, labels = look(mosaic.folder / row["image"], known_digits)
        (caption,) = (t["value"] for t in row["conversations"] if t["from"] == "gpt")
        assert caption == reading(labels)


def test_training_and_validation_share_no_digit_image(mosaic, known_digits):
    assert len(known_digits) == 1797  # no image is there twice
    used = {
        name: {
            number
            for path in (mosaic.folder / name).glob("*.png")
            for number in look(path, known_digits)[1].ravel().tolist()
            if number >= 0
        }
        for name in ("train", "val")
    }
    assert len(used["train"]) > 100
    assert not used["train"] & used["val"]


def test_same_arguments_same_bytes_other_arguments_other_folder(mosaic, tmp_path):
    again = Mosaic(root=str(tmp_path), batch_size=3, stage="captions", **SIZES)
    again.prepare()
    assert again.folder.name == mosaic.folder.name
    files = sorted(p.relative_to(mosaic.folder) for p in mosaic.folder.rglob("*") if p.is_file())
    assert len(files) == 12 + 3 * 4 + 4 + 1
    for file in files:
        assert (again.folder / file).read_bytes() == (mosaic.folder / file).read_bytes()
    names = {
        Mosaic(root=str(tmp_path), **(SIZES | {key: value})).folder.name
        for key, value in [("data_seed", 1), ("tint", 0.3), ("side", 4), ("mix", {"fine": 1})]
    }
    assert len(names | {mosaic.folder.name}) == 5


def damage_nothing(folder):
    return None


def damage_bytes(folder):
    with (folder / "train" / "00003.png").open("r+b") as file:
        file.seek(40)
        file.write(b"x")


def damage_missing(folder):
    (folder / "val" / "00001.png").unlink()


def damage_half_written(folder):
    (folder / "manifest.json").unlink()


def keep_an_index(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpn.data.index, "SMALL", 0)
        open_index(folder / "train-questions.json")
    assert list(folder.glob(".*.arrow"))


HARMLESS = [damage_nothing, keep_an_index]


@pytest.mark.parametrize("damage", [*HARMLESS, damage_bytes, damage_missing, damage_half_written])
def test_damaged_folders_are_written_again_and_whole_ones_left_alone(damage, mosaic, tmp_path):
    copy = Mosaic(root=str(tmp_path), **SIZES)
    shutil.copytree(mosaic.folder, copy.folder)
    (copy.folder / "marker").mkdir()
    damage(copy.folder)
    assert is_complete(copy.folder) == (damage in HARMLESS)
    copy.prepare()
    assert is_complete(copy.folder)
    assert (copy.folder / "marker").exists() == (damage in HARMLESS)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [copy.folder.name]


def prepare_and_count(root, results):
    mosaic = Mosaic(root=root, **SIZES)
    mosaic.prepare()
    results.put((is_complete(mosaic.folder), mosaic.folder.stat().st_ino))


def test_processes_that_start_together_share_one_data_set(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=prepare_and_count, args=(str(tmp_path), results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    seen = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(seen) == 1
    assert seen.pop()[0]


def test_rows_take_the_path_of_any_llava_file(mosaic):
    data = dpn.data.build("mosaic", root=mosaic.root, **SIZES)
    data.prepare_data()
    data.processor = DPNProcessor(
        train_tokenizer(data.corpus()), image_size=64, patch_size=8, image_mode="pad"
    )
    assert len(data.processor.tokenizer) < 450
    batch = next(iter(data.train_dataloader()))
    assert batch.pixel_values.shape == (16, 3, 64, 64)
    assert {meta["family"] for meta in batch.meta} == {"coarse", "medium", "fine"}
    captions = Conversations(
        Mosaic(root=mosaic.root, stage="captions", **SIZES).split("val"), data.processor
    )
    sample = captions[0]
    supervised = data.processor.decode([i for i in sample.labels if i >= 0])
    assert supervised == rows_of(mosaic, "val", "captions")[0]["conversations"][1]["value"]
    assert list(FileRows(data.source.split("val"))) == rows_of(mosaic, "val", "questions")
    words = data.processor.tokenizer.tokenize(
        " How many digits are in the top left quadrant? 1234567"
    )
    assert words[-7:] == list("1234567")
    assert len(words) == 10 + 1 + 7  # every common word is one token, so is the blank


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"counts": [3, 17]},
            "`data.counts=[3, 17]` is not possible; list numbers from 0 to 16.",
        ),
        (
            {"side": 2},
            "`data.counts=[2, 6, 10, 14]` is not possible; list numbers from 0 to 1.",
        ),
        ({"counts": []}, "`data.counts=[]` is not possible; list numbers from 0 to 16."),
        ({"turns": 5}, "`data.turns=5` is not possible; it can be 1 to 4."),
        ({"side": 9}, "`data.side=9` is not possible; it must be even."),
        ({"tint": 0}, "`data.tint=0` must be above 0 and at most 1."),
        ({"mix": {"fin": 1}}, "`data.mix` names 'fin'; there is coarse, medium, fine."),
        ({"mix": {"fine": 0}}, "`data.mix={'fine': 0}` must hold positive whole numbers."),
        ({"batch_size": 0}, "`data.batch_size=0` is not possible; it can be at least 1."),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(arguments, sentence, tmp_path):
    impossible = Mosaic(root=str(tmp_path), **arguments)
    assert impossible.check() == [sentence]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        impossible.prepare()
    assert not list(tmp_path.iterdir())
    assert Mosaic(root=str(tmp_path)).check() == []


def test_a_source_must_define_split():
    with pytest.raises(TypeError, match="does not implement split"):
        Source().split("train")
