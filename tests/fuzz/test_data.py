"""Rows, data files and images: read as they are, or refused with a sentence."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from dpn.data.batch import DataError
from dpn.data.images import ImageTransform, open_image
from dpn.data.rows import Conversations, FileRows, Questions
from dpn.data.sources.base import Split
from dpn.data.tokenizer import train_tokenizer
from dpn.metrics import accuracies
from dpn.model import DPNProcessor
from dpn.reports.tables import tables
from tests.data.conftest import CORPUS, gpt, human, row
from tests.fuzz.mutation import mutate_bytes, mutate_value
from tests.fuzz.outcomes import SKIPPED

pytestmark = pytest.mark.slow

ROWS = [
    row(1) | {"family": "easy", "difficulty": 2},
    row(2, human("<image>\nWhat colour is the cat?"), gpt("red"), image="red.png"),
    row(3, human("hi"), gpt("ho"), human("<image>\nAnd now?"), gpt("12 birds"), image="a/b.jpg"),
]


@pytest.fixture(scope="module")
def processor():
    return DPNProcessor(train_tokenizer(CORPUS), image_size=16, patch_size=4)


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("red.png", "a/b.jpg"):
        Image.new("RGB", (8, 4), "red").save(tmp_path / "images" / name)
    return tmp_path / "images"


def test_rows(fuzz, tmp_path, images, processor):
    """Each answer of a good row is learned as it stands there, and its metadata can be tabled."""
    split = Split(tmp_path / "rows.json", images)

    def attempt(rng):
        rows = mutate_value(rng, ROWS, rng.choice((1, 1, 2, 4)))
        split.file.write_text(json.dumps(rows), encoding="utf-8")
        data, scored, bad = Conversations(split, processor), [], 0
        for index in range(len(data)):
            try:
                sample = data[index]
            except DataError:
                bad += 1
                continue
            learned = processor.decode([label for label in sample.labels if label >= 0])
            for turn in rows[index]["conversations"][1:]:  # LLaVA drops an answer to no question
                if turn.get("from") == "gpt":
                    assert turn["value"].strip() in learned
            scored.append(sample.meta | {"score": 1.0, "base_rows": 0, "route": {}, "rows": []})
        scored = json.loads(json.dumps(scored))  # as in rows.jsonl
        for one in scored:
            one |= {"prompt": "?", "answer": "", "reference": "", "turn": 0}
            one |= {"visual_macs_ratio": 1.0, "prefill_flops": 1.0}
        for table in tables(accuracies(scored), scored):
            table.markdown()
        return SKIPPED if bad else None

    fuzz.run(attempt)


def test_questions(fuzz, tmp_path, images, processor):
    """With `on_error=skip` every bad row is counted, and the others are asked."""
    split = Split(tmp_path / "rows.json", images)

    def attempt(rng):
        rows = mutate_value(rng, [*ROWS, *ROWS], 2)
        split.file.write_text(json.dumps(rows), encoding="utf-8")
        questions = Questions(split, processor, on_error="skip")
        skipped = {
            name for index in range(len(questions)) for name in questions[index].meta["skipped"]
        }
        return SKIPPED if skipped else None

    fuzz.run(attempt)


def test_data_files(fuzz, tmp_path, images):
    """A file that is accepted holds the values that Python's own reader finds there."""
    file = tmp_path / "rows.json"
    whole = json.dumps(ROWS * 3, ensure_ascii=False, indent=1).encode()

    def attempt(rng):
        file.write_bytes(mutate_bytes(rng, whole, rng.choice((1, 2, 5))))
        read = list(FileRows(Split(file, images)))
        content = file.read_text(encoding="utf-8-sig")
        try:
            expected = json.loads(content)
        except ValueError:  # one value on each line
            expected = [json.loads(line) for line in content.split("\n") if line.strip()]
        assert json.dumps(read) == json.dumps(expected)

    fuzz.run(attempt)


def _picture(rng):
    """The bytes of a picture of some format, mode and shape."""
    size = rng.choice(((16, 12), (1, 1), (3, 900), (1, 60_000), (70_000, 1), (2500, 2000)))
    mode = rng.choice(("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK"))
    shades = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(shades).resize(size)
    image = image.convert(mode if mode != "I;16" else "I")
    data = io.BytesIO()
    format = rng.choice(("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "EPS", "PPM", "ICO", "PCX"))
    try:
        image.save(data, format)
    except (OSError, ValueError, KeyError, OverflowError):  # a mode that the format does not have
        data = io.BytesIO()
        image.convert("L").resize((16, 12)).save(data, "PNG")
    return data.getvalue()


def test_images(fuzz, tmp_path):
    """Pixels are finite and as many as asked for."""

    def attempt(rng):
        (tmp_path / "x.png").write_bytes(mutate_bytes(rng, _picture(rng), rng.choice((0, 1, 2))))
        image = open_image(tmp_path, "x.png")
        mode = rng.choice(("pad", "square", "none"))
        pixels = ImageTransform(mode, 16, multiple=4)(image)
        assert math.isfinite(float(pixels.sum()))
        if mode != "none":
            assert pixels.shape == (3, 16, 16)

    fuzz.run(attempt)
