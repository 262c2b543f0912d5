import ast
import re
from pathlib import Path

import pytest
from lightning.fabric.utilities import load
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy

import dpn
from dpn.training import _lightning

SOURCE = Path(_lightning.__file__)


def private_names() -> set[str]:
    """Names with one leading underscore that `_lightning.py` reads from Lightning."""
    nodes = [*ast.walk(ast.parse(SOURCE.read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    imported = {
        alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return {name for name in read | imported if name.startswith("_")}


@pytest.fixture
def owners(tmp_path):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    checkpoints = ModelCheckpoint(tmp_path)
    loops = trainer.fit_loop, trainer.fit_loop.epoch_loop
    return [load, trainer, *loops, checkpoints, ModelParallelStrategy(), logger]


def test_every_private_name_exists_in_lightning(owners):
    names = private_names()
    assert len(names) >= 11
    missing = [name for name in names if not any(hasattr(owner, name) for owner in owners)]
    assert not missing
    assert (load._METADATA_FILENAME, owners[-1]._experiment) == ("meta.pt", None)
    assert _lightning.logs_this_step(owners[1]) in (True, False)
    assert "project" in _lightning.wandb_arguments(owners[-1])


def test_no_other_file_uses_them():
    names = re.compile(rf"(?<!\w)({'|'.join(private_names())})\b")
    others = [path for path in Path(dpn.__file__).parent.rglob("*.py") if path != SOURCE]
    assert not [path for path in others if names.search(path.read_text())]
