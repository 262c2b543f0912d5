import math
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from dpn.config import build
from dpn.config.compose import CONFIG_DIR, compose
from dpn.data.batch import Sample, collate
from dpn.data.tokenizer import train_tokenizer
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.runs.folder import RunFolder
from dpn.training.module import parameter_groups
from dpn.training.schedule import Schedule, learning_rate_factor
from dpn.training.stage import trains


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_tokenizer(["What is it? A red square."])
    return DPNProcessor(tokenizer, image_size=64, patch_size=8)


def build_model(processor, *overrides: str) -> DPNForConditionalGeneration:
    return build.model(compose("train", overrides).config, processor)


PARTS = [
    (group, path.stem)
    for group in ("model", "loss", "optim", "stage")  # the other parts have their contract tests
    for path in sorted((CONFIG_DIR / group).glob("*.yaml"))
    if (group, path.stem) != ("model", "hf")  # for dpn.verify only
]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), PARTS)
def test_every_choice_builds_a_module(group, choice, processor):
    further = ["router.keep=0.6"] if choice in ("budget", "policy") else []
    config = compose("train", [f"{group}={choice}", "init=random", *further]).config
    with torch.device("meta"):  # large models take no memory there
        module = build.module(config, build.model(config, processor))
    for part in config.stage.freeze:
        assert not any(p.requires_grad for p in getattr(module.model, part).parameters())
    if not trains(config.stage):
        return
    optimizer = module.make_optimizer(parameter_groups(module, Schedule()))
    trained = {p for p in module.parameters() if p.requires_grad}
    assert {p for g in optimizer.param_groups for p in g["params"]} == trained
    if "language" not in config.stage.freeze:
        assert config.optim.lr in {g["lr"] for g in optimizer.param_groups}


@pytest.mark.parametrize("group", ["trainer", "logger", "callbacks"])
def test_every_choice_builds_a_trainer(group, tmp_path):
    from dpn.training.callbacks import Clock
    from dpn.training.resume import Checkpoints, CompleteCheckpointIO

    for path in sorted((CONFIG_DIR / group).glob("*.yaml")):
        if "deepspeed" in path.stem and not find_spec("deepspeed"):
            continue
        further = [f"paths.run_dir={tmp_path}", "trainer.accelerator=cpu"]
        config = compose("train", [f"{group}={path.stem}", *further]).config
        trainer = build.trainer(config, RunFolder(tmp_path), Clock())
        assert isinstance(trainer.strategy.checkpoint_io, CompleteCheckpointIO)
        assert isinstance(trainer.checkpoint_callback, Checkpoints)
        assert len(trainer.loggers) == (0 if path.stem == "none" else 1)


@pytest.mark.parametrize(
    ("router", "keep", "loss"),
    [
        ("dpe", None, "HingeLoss"),
        ("dpe", 0.6, "BudgetLoss"),
        ("none", None, "LanguageLoss"),
        ("static", 0.6, "LanguageLoss"),
        ("random", 0.6, "LanguageLoss"),
        ("dyvte", None, "ExitLoss"),
        ("dyvte", 0.6, "ExitLoss"),
    ],
)
def test_auto_loss(router, keep, loss, processor):
    overrides = [f"router={router}", f"router.keep={'null' if keep is None else keep}"]
    config = compose("train", [*overrides, "loss.reduction=reference"]).config
    with torch.device("meta"):
        made = build.routing_loss(config, build.model(config, processor).router)
    assert type(made).__name__ == loss
    assert made.reduction == "reference"


def test_same_seed_same_weights(processor):
    first, second, other = (build_model(processor, f"seed={seed}") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=1))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_gates_and_projector_may_have_their_own_rates(processor):
    config = compose("train", ["model=llava_hr_tiny"]).config
    module = build.module(config, build.model(config, processor))
    groups = parameter_groups(module, Schedule(gate_lr=1e-5, projector_lr=1e-6))
    rates = {id(p): 1e-5 for p in module.model.router.parameters()}
    projector = (module.model.projector, module.model.vision.merge)
    rates |= {id(p): 1e-6 for part in projector for p in part.parameters()}
    for group in groups:
        assert {rates.get(id(p)) for p in group["params"]} == {group.get("lr")}
        assert ("weight_decay" in group) == all(p.ndim < 2 for p in group["params"])
    assert all("lr" not in group for group in parameter_groups(module, Schedule()))


def test_schedules():
    def rates(**settings):
        schedule = Schedule(**{"warmup": 0.1, **settings})
        return [learning_rate_factor(schedule, step, 100) for step in range(101)]

    cosine, constant = rates(), rates(schedule="constant")
    wsd = rates(schedule="wsd", decay=0.2, final_lr=0.5)
    for factors in (cosine, constant, wsd):
        assert factors[:10] == pytest.approx([(n + 1) / 11 for n in range(10)])
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[100] == pytest.approx(0.0)
    assert cosine[40] == pytest.approx((1 + math.cos(math.pi * 30 / 90)) / 2)
    assert constant[10:] == [1.0] * 91
    assert wsd[10:81] == [1.0] * 71
    assert wsd[90] == pytest.approx(0.75)
    assert wsd[100] == pytest.approx(0.5)


def module_with_trainer(processor, world: int, accumulate: int, *overrides: str):
    """Build a module whose trainer reports a distributed run."""
    config = compose("train", overrides or ["router=none"]).config
    module = build.module(config, build.model(config, processor))
    strategy = SimpleNamespace(
        reduce=lambda value, reduce_op: value * world, handles_gradient_accumulation=False
    )
    module._trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate,
        world_size=world,
        global_step=0,
        strategy=strategy,
        _logger_connector=SimpleNamespace(should_update_logs=False),
    )
    return module


def test_router_acts_after_the_dense_share_of_the_steps(processor, monkeypatch, caplog):
    caplog.set_level("INFO")
    module = module_with_trainer(processor, 1, 1, "stage.dense=0.3")
    module.trainer.estimated_stepping_batches = 10
    module.on_train_start()
    assert "the router acts from step 3 on" in caplog.text
    seen = []
    forward = module.model.forward
    monkeypatch.setattr(
        module.model,
        "forward",
        lambda compress, **inputs: seen.append(compress) or forward(**inputs),
    )
    for module.trainer.global_step in range(5):
        module.training_step(batch_of(3, processor), 0)
    assert seen == [False, False, False, True, True]


def batch_of(supervised: int, processor):
    ids = processor.tokenizer("What is it? A red square.")["input_ids"]
    labels = [-100] * (len(ids) - supervised) + ids[len(ids) - supervised :]
    return collate([Sample(ids, labels)], processor.pad_token_id)


def test_loss_counts_the_tokens_of_all_processes_and_the_window(processor):
    """With 3 processes and 2 micro-batches, Lightning and DDP divide the loss of a step by 6."""
    batch = batch_of(3, processor)
    alone = module_with_trainer(processor, 1, 1).training_step(batch, 0).item()
    window = replace(batch, window_tokens=7)  # of this process; each other one has the same number
    shared = module_with_trainer(processor, 3, 2).training_step(window, 0).item()
    assert shared / 6 == pytest.approx(alone * 3 / 21)
    reference = ["loss=language", "+loss.reduction=reference"]
    own = module_with_trainer(processor, 3, 2, *reference).training_step(window, 0).item()
    assert own == pytest.approx(alone)


def test_batch_without_supervised_tokens_has_zero_loss_and_gradient(processor):
    module = module_with_trainer(processor, 1, 1)
    loss = module.training_step(batch_of(0, processor), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.isnan().any() for p in module.parameters())


@pytest.mark.parametrize(
    "overrides", [["loss=hinge"], ["router.keep=0.6", "loss=budget"], ["router.keep=0.6"]]
)
def test_batch_without_images_trains(overrides, processor):
    module = module_with_trainer(processor, 1, 1, *overrides)
    loss = module.training_step(batch_of(3, processor), 0)
    loss.backward()
    assert loss.isfinite()
    assert module.model.lm_head.weight.grad.abs().sum() > 0


def test_hyperparameters_are_plain(processor):
    module = module_with_trainer(processor, 1, 1)
    assert module.hparams["router"] == {"name": "none", "keep": None}
    assert type(module.hparams["trainer"]) is dict
