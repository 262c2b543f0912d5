"""Fixtures for runs of a few seconds: a tiny model on coloured squares in LLaVA's format."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from dpn.config.compose import compose
from dpn.reports import page
from dpn.train import train

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """Folder with the data set of `write_squares`."""
    return write_squares(tmp_path_factory.mktemp("squares"))


def without_times(rows):
    """Return rows without timings, which differ between runs."""
    return [{k: v for k, v in row.items() if k not in ("ms", "prefill_ms")} for row in rows]


def timeless(metrics):
    """Return metrics without timings and memory, which differ between runs."""
    return {k: v for k, v in metrics.items() if not k.startswith(("time/", "memory/"))}


def write_squares(folder: Path) -> Path:
    """Write train.json, val.json and their images; samples of family `long` have two turns."""
    for split, count in (("train", 16), ("val", 4)):
        rows = []
        for number in range(count):
            colour = list(COLOURS)[number % 3]
            image = f"{split}-{number}.png"
            Image.new("RGB", (32, 32), COLOURS[colour]).save(folder / image)
            turns = [
                {"from": "human", "value": "<image>\nWhich colour?"},
                {"from": "gpt", "value": colour},
            ]
            if number % 2:
                turns += [
                    {"from": "human", "value": "How many letters?"},
                    {"from": "gpt", "value": str(len(colour))},
                ]
            row = {"id": f"{split}-{number}", "image": image, "conversations": turns}
            rows.append(row | {"family": ("plain", "long")[number % 2], "difficulty": number % 2})
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


def tiny_run(squares: Path, outputs: Path) -> list[str]:
    """Return the overrides of a run on the squares."""
    return [
        "data=llava_json",
        f"data.train_file={squares / 'train.json'}",
        f"data.val_file={squares / 'val.json'}",
        f"data.image_root={squares}",
        "data.batch_size=4",
        "data.num_workers=0",
        "model.text.hidden_size=16",
        "model.text.intermediate_size=32",
        "model.text.num_hidden_layers=4",
        "model.text.num_attention_heads=2",
        "model.vision.image_size=32",
        "model.vision.width=16",
        "model.vision.depth=1",
        "model.vision.heads=2",
        "model.min_rows=1",
        "model.generation.max_new_tokens=4",
        "trainer.max_steps=6",
        "trainer.val_check_interval=3",
        "trainer.log_every_n_steps=1",
        "callbacks.checkpoint.every_n_train_steps=2",
        "logger=none",
        "overlays=0",
        f"paths.output_root={outputs}",
    ]


@pytest.fixture(scope="session")
def finished(squares, tmp_path_factory) -> Path:
    """Folder of a finished run, with figures. Tests may add files to it, and change none."""
    level = logging.root.level
    logging.root.setLevel("INFO")  # as on the command line, for log.txt
    try:
        return train(compose("train", tiny_run(squares, tmp_path_factory.mktemp("finished"))))
    finally:
        logging.root.setLevel(level)


@pytest.fixture
def figures():
    """Draw figures; tests that do not request this fixture skip them."""


@pytest.fixture(autouse=True)
def _no_figures(request, monkeypatch):
    """Skip drawing, which takes a third of the time of a tiny run."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(page, "draw", lambda rows, folder: [])


@pytest.fixture
def tiny(squares, tmp_path) -> list[str]:
    """Overrides of a run on the squares with outputs in the test's own folder."""
    return tiny_run(squares, tmp_path / "outputs")
