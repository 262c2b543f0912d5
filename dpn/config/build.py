"""The only place that turns config into objects."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dpn import checkpoints, data, inference, losses, routers, vision
from dpn.checkpoints.keys import part_of
from dpn.common import hub
from dpn.common.distributed import processes
from dpn.config.auto_loss import AutoLoss
from dpn.data.tokenizer import train_tokenizer
from dpn.decoder.layer import compile_layers
from dpn.losses import RoutingLoss
from dpn.model import DPNConfig, DPNForConditionalGeneration, DPNProcessor, meta_model
from dpn.routers import Router
from dpn.runs.folder import RunFolder
from dpn.training import lora
from dpn.training.schedule import SCHEDULE_KEYS, Schedule
from dpn.training.stage import trains
from dpn.vision import VisionTower

if TYPE_CHECKING:  # Lightning takes seconds to import, and a model needs none of it
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import Strategy

    from dpn.data.module import DataModule
    from dpn.training.callbacks import Clock
    from dpn.training.module import DPNModule

log = logging.getLogger(__name__)


def source(node: DictConfig) -> "DataModule":
    """The data module of a `data` section."""
    return data.build(**plain(node))


def processor(config: DictConfig, source: "DataModule") -> DPNProcessor:
    """Tokenizer and image recipe; a model without tokenizer gets one trained on the data's text."""
    model = config.model
    if config.init.model is not None:
        tokenizer = checkpoints.read_tokenizer(_weights(config.init.model))
    elif model.tokenizer is None:
        source.prepare_data()
        tokenizer = train_tokenizer(source.corpus(), model.vocab_size)
    else:
        tokenizer = checkpoints.read_tokenizer(hub.find(model.tokenizer))
    with torch.device("meta"):
        tower = vision.build(**plain(model.vision))
    return DPNProcessor(
        tokenizer,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        **plain(model.processor),
    )


def model(config: DictConfig, words: DPNProcessor) -> DPNForConditionalGeneration:
    """A model with random weights, the same for the same seed, or with those of `init`.

    A text model from files keeps their precision and stays mapped from them, so that the processes
    of a machine share its memory until they train, see `DPNModule.configure_model`.
    """
    torch.manual_seed(config.seed)
    tokens = words.tokenizer
    text = plain(config.model.text) | {
        "vocab_size": words.vocab_size,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    built = DPNForConditionalGeneration(
        DPNConfig(
            text_config=text,
            vision_config=plain(config.model.vision),
            projector_config=plain(config.projector),
            router_config=routers.settled(plain(config.router)),
            image_token_id=words.image_token_id,
            router_token_id=words.router_token_id,
        ),
        empty_language=config.init.model is not None or config.init.language is not None,
    )
    built.checkpoint_layers = built.vision.checkpoint_layers = config.model.checkpoint_layers
    built.attention = config.model.attention
    if config.model.compile_layers:
        compile_layers(built.language)
    for source, parts in init_parts(built.vision).items():
        if (name := config.init[source]) is not None:
            log.info("Starting from init.%s=%s", source, name)
            if source == "model" and not trains(config.stage):
                parts = tuple({part_of(name) for name in built.state_dict()})
            checkpoints.load(built, _weights(name), tokens, parts)
    if config.stage.lora is not None:
        lora.add(built.language, **plain(config.stage.lora))
    return built


def init_parts(tower: VisionTower) -> dict[str, tuple[str, ...] | None]:
    """What each key of section `init` fills, in this order; None: all that its source has."""
    return {
        "model": None,
        "language": ("language", "lm_head"),
        "vision": ("vision.model", "vision.fast"),
        "slow_vision": ("vision.slow",),
        "projector": ("projector", *(f"vision.{piece}" for piece in tower.aligned)),
    }


def trained(
    config: DictConfig,
    model: DPNForConditionalGeneration,
    words: DPNProcessor,
    run: RunFolder,
    strategy: "Strategy",
) -> DPNForConditionalGeneration:
    """A whole model without LoRA from what was trained; a sharded one goes by way of the folder.

    Training in bfloat16 ends with a model in bfloat16, but for its router.
    """
    half = str(config.trainer.precision).startswith("bf16")
    if not hasattr(strategy, "whole_state"):
        lora.merge(model.language)
        return _halved(model) if half else model
    state, place = strategy.whole_state(), run.path / "model"
    if run.writer:
        with torch.device("meta"):
            whole = DPNForConditionalGeneration(model.config)
        if config.stage.lora is not None:
            lora.add(whole.language, **plain(config.stage.lora))
        own = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        whole.load_state_dict(own, assign=True)
        lora.merge(whole.language)
        inference.save(_halved(whole) if half else whole, words, place)
    strategy.barrier()
    return DPNForConditionalGeneration.from_pretrained(place)


def _halved(model: DPNForConditionalGeneration) -> DPNForConditionalGeneration:
    for name, part in model.named_children():
        part.to(torch.float32 if name == "router" else torch.bfloat16)
    return model


def of_run(run: Path, device: str = "auto") -> tuple[DPNForConditionalGeneration, "DataModule"]:
    """A run's trained model, ready to answer, and the data that it was trained on.

    Raises:
        FileNotFoundError: if it is no folder of a finished run.
    """
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(
            f"run={run} is no run folder: expected {run / 'config.yaml'}; give the folder of a"
            " finished run, whose data is needed."
        )
    model, words = inference.load(run, device)
    module = source(OmegaConf.load(run / "config.yaml").data)
    module.processor = words
    module.prepare_data()
    return model, module


def model_config(config: DictConfig) -> DPNConfig:
    """Config of a model without a tokenizer; its last two ids are `<image>` and `<ROUTER>`."""
    text = {"vocab_size": config.model.vocab_size, **plain(config.model.text)}
    size = text["vocab_size"]
    return DPNConfig(
        text_config=text,
        vision_config=plain(config.model.vision),
        projector_config=plain(config.projector),
        router_config=routers.settled(plain(config.router)),
        image_token_id=size - 2,
        router_token_id=size - 1,
    )


def meta_module(config: DictConfig) -> "DPNModule":
    """Build what a config trains on the meta device: shapes, without memory and files."""
    built = meta_model(model_config(config))
    built.checkpoint_layers = built.vision.checkpoint_layers = config.model.checkpoint_layers
    with torch.device("meta"):
        if config.stage.lora is not None:
            lora.add(built.language, **plain(config.stage.lora))
        return module(config, built)


def routing_loss(config: DictConfig, router: Router) -> RoutingLoss:
    """The loss of the config; `auto` depends on the router and its keep."""
    node = plain(config.loss)
    name = node.pop("name")
    if name == "auto":
        name, node = AutoLoss(**node).choose(type(router), router.keep)
    return losses.build(name, **node, router=router)


def module(config: DictConfig, built: DPNForConditionalGeneration) -> "DPNModule":
    """The LightningModule."""
    from dpn.training.module import DPNModule

    optim = plain(config.optim)
    schedule = Schedule(**{k: optim.pop(k) for k in SCHEDULE_KEYS if k in optim})
    return DPNModule(
        built,
        routing_loss(config, built.router),
        optimizer=instantiate(optim | {"_partial_": True}, _convert_="all"),
        schedule=schedule,
        freeze=config.stage.freeze,
        dense=config.stage.dense,
        seed=config.seed,
        settings=plain(config),
    )


def trainer(config: DictConfig, run: RunFolder, clock: "Clock") -> "Trainer":
    """The Trainer with the config's loggers and callbacks, and those that every run has."""
    from dpn.training.callbacks import Curves, StepSeed, StopAfterStep
    from dpn.training.dashboards import RouteHistograms
    from dpn.training.resume import CompleteCheckpointIO

    curves = Curves(run.path / "curves.jsonl")
    own = [clock, curves, StepSeed(config.seed), StopAfterStep(run.stop), RouteHistograms()]
    chosen = [instantiate(node) for node in config.callbacks.values() if node]
    loggers = [instantiate(node) for node in config.logger.values() if node]
    node = plain(config.trainer) | {"_partial_": True}
    if (whole := config.data.global_batch) is not None:
        node["accumulate_grad_batches"] = whole // (config.data.batch_size * processes(node))
    if not trains(config.stage):
        node["limit_val_batches"] = 0
    make = instantiate(node, _convert_="all")
    return make(
        callbacks=own + chosen,
        logger=loggers or False,
        plugins=[CompleteCheckpointIO()],
        default_root_dir=str(run.path),
        use_distributed_sampler=False,  # the data module's sampler knows the ranks
        enable_model_summary=False,
    )


def plain(node: Any) -> Any:
    """Resolved Python values of a config node."""
    return OmegaConf.to_container(node, resolve=True)


def _weights(name: str) -> Path:
    """The file or folder of weights behind a value of section `init`."""
    return inference.model_folder(hub.find(name))
