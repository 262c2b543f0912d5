import json

import numpy as np
import pytest
from PIL import Image

from dpn.data.tokenizer import train_tokenizer
from dpn.model import DPNProcessor

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. ",
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    "USER: \nWhat colour is the cat on the sofa? ASSISTANT: It is black and white.",
    "USER: How many birds are there? ASSISTANT: There are 12 of them, I think.",
] * 3


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(CORPUS)


@pytest.fixture
def processor(tokenizer):
    return DPNProcessor(tokenizer, image_mode="none", patch_size=4)


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def row(number, *turns, image=None):
    turns = turns or (human("How many birds are there?"), gpt(f"There are {number} of them."))
    return {"id": f"r{number}", "conversations": list(turns)} | ({"image": image} if image else {})


def picture(width, height, mode="RGB"):
    """Return an image of random pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


@pytest.fixture
def write(tmp_path):
    """Writes rows and a few images, returns the file."""

    def write(rows, name="train.json"):
        for colour in ("red", "green", "blue"):
            path = tmp_path / "images" / f"{colour}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 4), colour).save(path)
        file = tmp_path / name
        file.write_text(json.dumps(rows))
        return file

    return write
