import json
import os

import pytest
import torch
from safetensors.torch import save_file

from dpn.checkpoints.containers import open_containers

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(2, dtype=torch.bfloat16)}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("code_was_run",)


def read_all(source):
    found = {}
    for container in open_containers(source):
        with container.open() as read:
            found |= {name: read(name) for name in container.shapes}
    return found


def write_shards(folder, suffix, save, names=("model-00001-of-00002", "model-00002-of-00002")):
    stem = "pytorch_model.bin" if suffix == ".bin" else "model.safetensors"
    places = {key: name + suffix for key, name in zip(WEIGHTS, names, strict=True)}
    for key, name in places.items():
        save({key: WEIGHTS[key]}, folder / name)
    index = {"metadata": {"total_size": 28}, "weight_map": places}
    (folder / f"{stem}.index.json").write_text(json.dumps(index))


def old_torch(weights, path):
    torch.save(weights, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("model.safetensors", save_file),
        ("pytorch_model.bin", torch.save),
        ("pytorch_model.bin", old_torch),
        ("mm_projector.bin", torch.save),
    ],
)
def test_one_file(name, save, tmp_path):
    save(WEIGHTS, tmp_path / name)
    for source in (tmp_path, tmp_path / name):
        torch.testing.assert_close(read_all(source), WEIGHTS, rtol=0, atol=0)
    (container,) = open_containers(tmp_path)
    assert container.shapes == {"a.weight": (2, 3), "b.bias": (2,)}


@pytest.mark.parametrize(("suffix", "save"), [(".safetensors", save_file), (".bin", torch.save)])
def test_shards_and_a_missing_one(suffix, save, tmp_path):
    write_shards(tmp_path, suffix, save)
    assert len(open_containers(tmp_path)) == 2
    torch.testing.assert_close(read_all(tmp_path), WEIGHTS, rtol=0, atol=0)
    (tmp_path / f"model-00002-of-00002{suffix}").unlink()
    with pytest.raises(FileNotFoundError, match=f"are missing: model-00002-of-00002{suffix};"):
        open_containers(tmp_path)


def test_an_index_may_not_reach_outside(tmp_path):
    write_shards(tmp_path, ".bin", torch.save)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ValueError, match=r"outside its folder: \.\./model-00001"):
        open_containers(tmp_path)


@pytest.mark.parametrize("key", ["state_dict", "module"])
def test_a_checkpoint_that_holds_a_state_dict(key, tmp_path):
    torch.save({"epoch": 3, "hyper_parameters": {"lr": 0.1}, key: WEIGHTS}, tmp_path / "last.ckpt")
    torch.testing.assert_close(read_all(tmp_path / "last.ckpt"), WEIGHTS, rtol=0, atol=0)


@pytest.mark.parametrize("save", [torch.save, old_torch])
def test_a_pickle_with_code_is_refused_and_not_run(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save({**WEIGHTS, "c": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin holds more than tensors"):
        open_containers(tmp_path)
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("model.safetensors", save_file),
        ("pytorch_model.bin", torch.save),
        ("pytorch_model.bin", old_torch),
    ],
)
def test_a_truncated_file_is_named(name, save, tmp_path):
    save(WEIGHTS, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for content in (b"", whole[:20], whole[:100], whole[:-8], b"<html>not found</html>"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged or incomplete"):
            open_containers(tmp_path)


def test_sources_without_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no weights: looked for model\.safe"):
        open_containers(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_containers(tmp_path / "nowhere")
    torch.save({"step": 1}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no tensors"):
        open_containers(tmp_path)
