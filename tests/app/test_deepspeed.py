"""What DeepSpeed would be given for the composed recipes, read by its own parser."""

from types import SimpleNamespace

import lightning as L
import pytest

from dpn.config import build
from dpn.config.compose import compose
from dpn.runs.folder import RunFolder
from dpn.training.callbacks import Clock

ZERO2, ZERO3 = 2, 3
# devices, ZeRO stage, batch of a GPU, accumulated batches, global batch
RECIPES = {
    "dpn_llava_1_5_7b": (8, ZERO2, 16, 1, 128),
    "llava_1_5_7b_pretrain": (4, ZERO2, 32, 2, 256),
    "dpn_llava_hr_7b": (16, ZERO3, 8, 1, 128),
    "dpn_llava_hr_x_13b": (8, ZERO3, 8, 2, 128),
}


def given(folder, devices, *overrides):
    """The config for `deepspeed.initialize`, after Lightning has filled in its own values."""
    places = ["trainer.accelerator=cpu", f"trainer.devices={devices}", "logger=none"]
    config = compose("train", [*overrides, *places]).config
    trainer = build.trainer(config, RunFolder(folder), Clock())
    module = L.LightningModule()
    module.trainer = trainer
    trainer.strategy.connect(module)
    trainer.strategy._init_config_if_needed()
    return trainer.strategy.config


@pytest.fixture
def parsed(monkeypatch):
    """DeepSpeed's parser, for a number of processes."""
    config = pytest.importorskip("deepspeed.runtime.config")

    def parse(values, processes):
        world = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: processes)
        monkeypatch.setattr(config, "dist", world)
        return config.DeepSpeedConfig(values)

    return parse


@pytest.mark.parametrize("name", RECIPES)
def test_deepspeed_reads_what_the_recipe_means(name, parsed, tmp_path):
    devices, stage, batch, accumulated, together = RECIPES[name]
    values = given(tmp_path, devices, f"experiment={name}")
    assert "auto" not in str(values)  # Lightning fills in nothing there, and DeepSpeed would guess
    config = parsed(values, devices)
    assert config.bfloat16_config.enabled
    assert not config.float16_config.enabled
    assert config.train_micro_batch_size_per_gpu == batch
    assert config.gradient_accumulation_steps == accumulated
    assert config.train_batch_size == together
    assert config.gradient_clipping == 0.0
    assert config.zero_allow_untested_optimizer
    zero = config.zero_config
    assert (zero.stage, zero.overlap_comm, zero.contiguous_gradients) == (stage, True, True)
    assert (zero.sub_group_size, zero.reduce_bucket_size) == (10**9, 4096**2)
    assert zero.offload_optimizer is None
    assert zero.offload_param is None
    if stage == ZERO3:
        assert zero.prefetch_bucket_size == int(0.9 * 4096**2)
        assert zero.param_persistence_threshold == 10 * 4096
        assert (zero.max_live_parameters, zero.max_reuse_distance) == (10**9, 10**9)
        assert zero.gather_16bit_weights_on_model_save


def test_precision_and_clipping_follow_the_trainer(parsed, tmp_path):
    changes = ["trainer=deepspeed_zero2", "trainer.precision=32-true"]
    config = parsed(given(tmp_path, 2, *changes, "trainer.gradient_clip_val=0.5"), 2)
    assert (config.bfloat16_config.enabled, config.gradient_clipping) == (False, 0.5)
