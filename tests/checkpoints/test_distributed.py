"""Tests with an FSDP2 checkpoint of two processes, written by Lightning."""

import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from dpn import DPNForConditionalGeneration
from dpn.checkpoints import containers, convert, load
from dpn.checkpoints.distributed import open_distributed
from tests.checkpoints.conftest import VOCABULARY
from tests.checkpoints.folders import write_llava
from tests.checkpoints.test_loading import our_model

TRAIN = """
import sys, torch, lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from tests.checkpoints.test_loading import our_model

class Run(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = our_model(VOCABULARY + 1, router={"name": "dpe", "layers": [1], "min_rows": 1})

    def configure_model(self):
        for layer in self.model.language.layers:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, _):
        return sum(p.float().square().sum() for p in self.model.parameters() if p.requires_grad)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

if __name__ == "__main__":
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False)
    run = Run()
    trainer.fit(run, torch.utils.data.DataLoader(torch.zeros(4, 1)))
    trainer.save_checkpoint(sys.argv[1])
    whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in
        run.model.state_dict().items()}
    if trainer.global_rank == 0:
        torch.save(whole, sys.argv[2])
""".replace("VOCABULARY", str(VOCABULARY))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    (folder / "train.py").write_text(TRAIN)
    paths = [folder / name for name in ("train.py", "step-1.ckpt", "whole.pt")]
    subprocess.run(
        [sys.executable, *paths],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        cwd=folder,
    )
    return paths[1], torch.load(paths[2])


@pytest.mark.slow
def test_loaded_and_converted_it_is_the_model_that_was_trained(run, tmp_path, monkeypatch):
    folder, whole = run
    monkeypatch.setattr(containers, "PART_BYTES", 40_000)
    assert len(open_distributed(folder)) > 3
    model = our_model(VOCABULARY + 1, router={"name": "dpe", "layers": [1]}, seed=8)
    report = load(model, folder)
    assert (report.title, report.missing, report.unexpected) == ("DPN", {}, {})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name
    router = {"name": "dpe", "layers": [1]}
    write_llava(tmp_path / "llava")
    convert(tmp_path / "llava", tmp_path / "like")
    like = DPNForConditionalGeneration.from_pretrained(tmp_path / "like").config
    like.router_config = router
    like.save_pretrained(tmp_path / "like")
    convert(folder, tmp_path / "ours", like=tmp_path / "like")
    again = DPNForConditionalGeneration.from_pretrained(tmp_path / "ours")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole[name]), name
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "__1_0.distcp").unlink()
    with pytest.raises(FileNotFoundError, match=r"copy lacks __1_0\.distcp, which its index names"):
        load(model, tmp_path / "copy")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("code_was_run",)


def test_an_index_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = tmp_path / ".metadata"
    index.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"\.metadata asks for posix\.mkdir, .* refused"):
        load(our_model(), tmp_path)
    assert not (tmp_path / "code_was_run").exists()
    for content in (b"", pickle.dumps({"a": 1})):
        index.write_bytes(content)
        with pytest.raises(ValueError, match=r"\.metadata is damaged or incomplete"):
            load(our_model(), tmp_path)
