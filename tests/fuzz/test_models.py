"""Model folders and checkpoints: their weights are those that were saved, or they are refused."""

import json
import shutil

import pytest
import torch

from dpn import inference
from dpn.common.errors import FileError
from dpn.training.resume import CompleteCheckpointIO, latest_checkpoint
from tests.fuzz.mutation import mutate_bytes, mutate_value
from tests.talkers import make_talker, picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    inference.save(*make_talker({"name": "dpe", "layers": [0, 2], "min_rows": 1}), folder)
    return folder


@pytest.fixture(scope="module")
def weights(saved):
    return inference.load(saved, "cpu")[0].state_dict()


def _copy(saved, tmp_path):
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    return shutil.copytree(saved, tmp_path / "model")


def test_weight_files(fuzz, saved, weights, tmp_path):
    """Damaged weights are refused; no tensor is changed, missing or made anew."""

    def attempt(rng):
        folder = _copy(saved, tmp_path)
        file = folder / "model.safetensors"
        file.write_bytes(mutate_bytes(rng, file.read_bytes()))
        loaded = inference.load(folder, "cpu")[0].state_dict()
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)

    fuzz.run(attempt)


def test_model_folders(fuzz, saved, tmp_path):
    """A folder with another config answers, or is refused."""
    names = [path.name for path in sorted(saved.glob("*.json"))]

    def attempt(rng):
        folder = _copy(saved, tmp_path)
        file = folder / rng.choice(names)
        if rng.random() < 0.2:
            file.write_bytes(mutate_bytes(rng, file.read_bytes()))
        else:
            changed = mutate_value(rng, json.loads(file.read_text(encoding="utf-8")))
            file.write_text(json.dumps(changed), encoding="utf-8")
        model, processor = inference.load(folder, "cpu")
        inference.ask(model, processor, "<image>\nWhich?", [picture()], 2)

    fuzz.run(attempt)


def test_checkpoints(fuzz, tmp_path):
    """The newest checkpoint that is whole is used, with the values that were saved."""
    io, first, second = CompleteCheckpointIO(), tmp_path / "step-1.ckpt", tmp_path / "step-2.ckpt"
    for number, path in enumerate((first, second), 1):
        content = {"step": number, "weights": torch.arange(50.0) * number, "names": ["a", "b"]}
        io.save_checkpoint(content, path)
    whole = second.read_bytes()

    def attempt(rng):
        second.write_bytes(mutate_bytes(rng, whole))
        path = latest_checkpoint(tmp_path)
        assert path is not None
        content = io.load_checkpoint(path)
        number = (first, second).index(path) + 1
        assert content["step"] == number
        assert torch.equal(content["weights"], torch.arange(50.0) * number)
        if number == 1:
            raise FileError("The newest checkpoint is damaged; the one before it is used.")

    fuzz.run(attempt)
