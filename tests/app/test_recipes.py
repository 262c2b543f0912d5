"""Compare the composed recipes with the published scripts of LLaVA, LLaVA-HR and DPN."""

import pytest
from omegaconf import OmegaConf

from dpn import routers
from dpn.common.processes import processes
from dpn.config.auto_loss import AutoLoss
from dpn.config.compose import compose

ZERO2, ZERO3 = 2, 3
SHAPES = {"7b": (4096, 32, 11008), "13b": (5120, 40, 13824)}
ALL = {"vision", "projector", "language", "lm_head", "router"}
# trained parts, learning rate, global batch, longest sample, ZeRO stage, pixels, image mode
RECIPES = {
    "llava_1_5_7b_pretrain": ({"projector"}, 1e-3, 256, 2048, ZERO2, 336, "square"),
    "llava_1_5_7b": (ALL - {"vision"}, 2e-5, 128, 2048, ZERO3, 336, "pad"),
    "llava_1_5_13b_pretrain": ({"projector"}, 1e-3, 256, 2048, ZERO2, 336, "square"),
    "llava_1_5_13b": (ALL - {"vision"}, 2e-5, 128, 2048, ZERO3, 336, "pad"),
    "llava_hr_7b_pretrain": ({"projector"}, 1e-3, 256, 2048, ZERO2, 384, "square"),
    "llava_hr_7b": (ALL, 2e-5, 128, 2496, ZERO3, 1024, "pad"),
    "llava_hr_x_13b_pretrain": ({"projector"}, 1e-3, 256, 2048, ZERO2, 384, "square"),
    "llava_hr_x_13b": (ALL, 2e-5, 128, 2496, ZERO3, 1024, "pad"),
    "dpn_llava_1_5_7b": (ALL, 2e-5, 128, 2048, ZERO2, 336, "pad"),
    "dpn_llava_hr_7b": (ALL, 2e-5, 128, 2496, ZERO3, 1024, "pad"),
    "dpn_llava_hr_x_13b": (ALL, 2e-5, 128, 2496, ZERO3, 1024, "pad"),
}


def composed(*overrides):
    config = compose("train", overrides).config
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_those_of_the_papers(name):
    trained, rate, batch, length, stage, pixels, mode = RECIPES[name]
    config = composed(f"experiment={name}")
    assert ALL - set(config.stage.freeze) == trained
    assert (config.optim.lr, config.data.global_batch, config.data.max_length) == (
        rate,
        batch,
        length,
    )
    optim = config.optim
    assert (optim._target_, optim.weight_decay) == ("torch.optim.AdamW", 0.0)
    assert (list(optim.betas), optim.schedule, optim.warmup) == ([0.9, 0.999], "cosine", 0.03)
    assert (optim.gate_lr, optim.projector_lr, optim.final_lr) == (None, None, 0.0)
    trainer = config.trainer
    assert (trainer.max_epochs, trainer.max_steps, trainer.precision) == (1, -1, "bf16-mixed")
    assert trainer.gradient_clip_val is None
    assert trainer.strategy.config.zero_optimization.stage == stage
    assert (config.model.vision.image_size, config.model.processor.image_mode) == (pixels, mode)
    pretraining = name.endswith("pretrain")
    assert config.data.template == ("plain" if pretraining else "v1")
    family = "dpn" if name.startswith("dpn") else "llava_hr" if "hr" in name else "llava"
    assert config.data.group == ("none" if pretraining else family)
    assert config.model.processor.template == "v1"
    assert (config.init.projector is None) == pretraining
    text = config.model.text
    size = SHAPES["13b" if "13b" in name else "7b"]
    assert (text.hidden_size, text.num_hidden_layers, text.intermediate_size) == size
    assert config.model.checkpoint_layers
    assert config.router.name == ("dpe" if name.startswith("dpn") else "none")
    if config.router.name == "dpe":
        assert (config.router.temperature, config.router.min_rows, config.router.keep) == (
            10,
            18,
            None,
        )
        name, _ = AutoLoss(config.loss.reduction).choose(routers.resolve("dpe"), config.router.keep)
        assert name == "hinge"


def test_a_model_selects_its_recipe():
    config = composed("model=llava_hr", "router=dpe")
    assert config.data.train_file == "data/llava_v1_5_mix665k.json"
    assert config.stage.lr == 2e-5
    assert config.trainer.precision == "bf16-mixed"
    assert composed("model=llava_hr", "stage=pretrain").data.template == "plain"
    assert composed("model=llava_hr", "data=mosaic").data.name == "mosaic"
    assert composed("model=llava_hr", "init=random").init.language is None


@pytest.mark.parametrize(
    ("devices", "nodes", "batch_size", "steps"),
    [(8, 1, 16, 1), (8, 1, 8, 2), (2, 4, 2, 8), (1, 1, 1, 128)],
)
def test_global_batch_gives_the_accumulation(devices, nodes, batch_size, steps):
    trainer = {"devices": devices, "num_nodes": nodes, "accelerator": "cpu"}
    assert 128 // (batch_size * processes(trainer)) == steps
    assert processes({"devices": [0, 2], "accelerator": "gpu"}) == 2
    assert processes({"devices": "auto", "accelerator": "cpu"}) == 1


def test_torchrun_knows_the_number_of_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert processes({"devices": 8, "accelerator": "gpu"}) == 16
