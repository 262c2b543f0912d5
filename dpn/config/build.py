"""Build the objects of a config: data module, processor, model, loss, LightningModule and Trainer.

This is the only place where a config becomes objects. It expects a config that
`dpn.config.preflight` accepts; `dpn.train` shows the order of the calls.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpn import checkpoints, data, inference, losses, routers, vision
from dpn.checkpoints.keys import part_of
from dpn.common import hub
from dpn.common.processes import processes
from dpn.config import targets
from dpn.config.auto_loss import AutoLoss
from dpn.data.tokenizer import load_tokenizer, train_tokenizer
from dpn.decoder.layer import compile_layers
from dpn.losses import RoutingLoss
from dpn.model import DPNConfig, DPNForConditionalGeneration, DPNProcessor, meta_model
from dpn.routers import Router
from dpn.runs.folder import RunFolder
from dpn.runs.request import ConfigError, unresolved
from dpn.runs.saved import read_settings
from dpn.runs.typed import as_typed
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
#: Files of a tokenizer's folder that determine its ids.
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens*")


def data_module(node: DictConfig) -> "DataModule":
    """Build the data module of a `data` section."""
    return data.build(**plain(node))


def input_files(data_module: "DataModule", config: DictConfig | None = None) -> dict[str, Path]:
    """Return the data files by their role; given the whole config, those of the tokenizer, too."""
    source = data_module.source
    splits = [("train", source.split("train")), ("val", source.split("val"))]
    splits += [(f"text {number}", split) for number, split in enumerate(source.corpus())]
    files: dict[str, Path] = {}
    for role, split in splits:
        if split is not None and split.file not in files.values():
            files[role] = split.file
    if config is not None and (place := _tokenizer_folder(config)) is not None:
        names = {path for pattern in _TOKENIZER_FILES for path in place.glob(pattern)}
        files |= {path.name: path for path in sorted(names)}
    return files


def trains_tokenizer(config: DictConfig) -> bool:
    """Whether a run trains a tokenizer on the text of its data set."""
    return _tokenizer_folder(config) is None


def _tokenizer_folder(config: DictConfig) -> Path | None:
    """Return the folder of the tokenizer; None if the config names none."""
    if config.init.model is not None:
        return _weights(config.init.model)
    return None if config.model.tokenizer is None else hub.find(config.model.tokenizer)


def processor(
    config: DictConfig, data_module: "DataModule", kept: Path | None = None
) -> DPNProcessor:
    """Build the processor; if the config names no tokenizer, train one on the data set's text.

    Args:
        config: Train config.
        data_module: Data set.
        kept: Folder with the tokenizer that the run trained before; it is used if it exists.
    """
    model, settings = config.model, plain(config.model.processor)
    if (place := _tokenizer_folder(config)) is not None:
        tokenizer = checkpoints.read_tokenizer(place)
        settings.setdefault("tokenization", checkpoints.tokenization_of(place))
    elif kept is not None and kept.is_dir():
        tokenizer = load_tokenizer(kept)
    else:
        data_module.prepare_data()
        tokenizer = train_tokenizer(data_module.corpus(), model.vocab_size)
    with torch.device("meta"):
        tower = vision.build(**plain(model.vision))
    return DPNProcessor(
        tokenizer,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        **settings,
    )


def model(config: DictConfig, processor: DPNProcessor) -> DPNForConditionalGeneration:
    """Build the model with random weights, which depend on the seed alone, or with those of `init`.

    A text model that is loaded from files keeps their precision and stays memory-mapped, so that
    the processes of a machine share its memory until they train (`DPNModule.configure_model`).
    """
    torch.manual_seed(config.seed)
    tokenizer = processor.tokenizer
    text = plain(config.model.text) | {
        "vocab_size": processor.vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = DPNForConditionalGeneration(
        DPNConfig(
            text_config=text,
            vision_config=plain(config.model.vision),
            projector_config=plain(config.projector),
            router_config=routers.inline_files(plain(config.router)),
            image_token_id=processor.image_token_id,
            router_token_id=processor.router_token_id,
        ),
        empty_language=config.init.model is not None or config.init.language is not None,
    )
    model.checkpoint_layers = model.vision.checkpoint_layers = config.model.checkpoint_layers
    model.attention = config.model.attention
    if config.model.compile_layers:
        compile_layers(model.language)
    for key, parts in parts_of_init(model.vision).items():
        if (name := config.init[key]) is not None:
            log.info("Starting from init.%s=%s", key, name)
            if key == "model":
                parts = initial_parts(config, model)
            checkpoints.load(model, _weights(name), tokenizer, parts)
    if config.stage.lora is not None:
        lora.add(model.language, **plain(config.stage.lora))
    return model


def initial_parts(config: DictConfig, model: DPNForConditionalGeneration) -> tuple[str, ...] | None:
    """Return the parts that `init.model` must have completely; None: those of its format.

    A model that is not trained needs all its weights. A router that is trained may be new.
    """
    if trains(config.stage):
        return None
    return tuple({part_of(name) for name in model.state_dict()})


def parts_of_init(tower: VisionTower) -> dict[str, tuple[str, ...] | None]:
    """Return the parts that each key of `init` loads, in order; None: all that the files hold."""
    return {
        "model": None,
        "language": ("language", "lm_head"),
        "vision": ("vision.model", "vision.fast"),
        "slow_vision": ("vision.slow",),
        "projector": ("projector", *(f"vision.{piece}" for piece in tower.aligned)),
    }


def trained_model(
    config: DictConfig,
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    run: RunFolder,
    strategy: "Strategy",
) -> DPNForConditionalGeneration:
    """Return the whole model after training, with LoRA merged into its weights.

    A sharded model is gathered, saved to the run's folder, and loaded from there by every process.
    After training in bfloat16 the weights are bfloat16, except those of the router.
    """
    half = str(config.trainer.precision).startswith("bf16")
    if not hasattr(strategy, "whole_state"):
        lora.merge(model.language)
        return _to_bfloat16(model) if half else model
    state, folder = strategy.whole_state(), run.path / "model"
    if run.writer:
        with torch.device("meta"):
            whole = DPNForConditionalGeneration(model.config)
        if config.stage.lora is not None:
            lora.add(whole.language, **plain(config.stage.lora))
        weights = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        whole.load_state_dict(weights, assign=True)
        lora.merge(whole.language)
        inference.save(_to_bfloat16(whole) if half else whole, processor, folder)
    strategy.barrier()
    return DPNForConditionalGeneration.from_pretrained(folder)


def _to_bfloat16(model: DPNForConditionalGeneration) -> DPNForConditionalGeneration:
    for name, part in model.named_children():
        part.to(torch.float32 if name == "router" else torch.bfloat16)
    return model


def load_run(run: Path, device: str = "auto") -> tuple[DPNForConditionalGeneration, "DataModule"]:
    """Load the trained model of a run, in eval mode, and the data that it was trained on.

    Raises:
        FileNotFoundError: If `run` is not the folder of a finished run.
    """
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(
            f"run={run} is not a run folder: {run / 'config.yaml'} does not exist; give the folder"
            " of a finished run, since its data set is needed."
        )
    model, processor = inference.load(run, device)
    training_data = data_module(read_settings(run, ["data"]).data)
    training_data.processor = processor
    training_data.prepare_data()
    return model, training_data


def model_config(config: DictConfig) -> DPNConfig:
    """Build a model config without a tokenizer: its last two ids are `<image>` and `<ROUTER>`."""
    text = {"vocab_size": config.model.vocab_size, **plain(config.model.text)}
    size = text["vocab_size"]
    return DPNConfig(
        text_config=text,
        vision_config=plain(config.model.vision),
        projector_config=plain(config.projector),
        router_config=routers.inline_files(plain(config.router)),
        image_token_id=size - 2,
        router_token_id=size - 1,
    )


def meta_module(config: DictConfig) -> "DPNModule":
    """Build the LightningModule on the meta device: shapes alone, without memory and files."""
    model = meta_model(model_config(config))
    model.checkpoint_layers = model.vision.checkpoint_layers = config.model.checkpoint_layers
    with torch.device("meta"):
        if config.stage.lora is not None:
            lora.add(model.language, **plain(config.stage.lora))
        return module(config, model)


def routing_loss(config: DictConfig, router: Router) -> RoutingLoss:
    """Build the routing loss; `loss=auto` chooses one by the router and its keep."""
    node = plain(config.loss)
    name = node.pop("name")
    if name == "auto":
        name, node = AutoLoss(**node).choose(type(router), router.keep)
    return losses.build(name, **node, router=router)


def module(config: DictConfig, model: DPNForConditionalGeneration) -> "DPNModule":
    """Build the LightningModule: the model with its loss, optimizer and schedule."""
    from dpn.training.module import DPNModule

    optim = plain(config.optim)
    schedule = Schedule(**{k: optim.pop(k) for k in SCHEDULE_KEYS if k in optim})
    optimizer: Callable[..., Any] = targets.resolve(optim["_target_"])
    return DPNModule(
        model,
        routing_loss(config, model.router),
        optimizer=partial(optimizer, **targets.arguments(optim)),
        schedule=schedule,
        freeze=config.stage.freeze,
        dense=config.stage.dense,
        seed=config.seed,
        settings=as_typed(config),
    )


def trainer(config: DictConfig, run: RunFolder, clock: "Clock") -> "Trainer":
    """Build the Trainer with the config's loggers and callbacks and those that every run has."""
    from dpn.training._lightning import set_timeout
    from dpn.training.callbacks import Curves, StepSeed, StopAfterStep
    from dpn.training.dashboards import RouteHistograms
    from dpn.training.resume import CompleteCheckpointIO

    for name in ("lightning.pytorch", "lightning.fabric"):  # they log from INFO once imported
        logging.getLogger(name).setLevel(logging.WARNING)
    curves = Curves(run.path / "curves.jsonl")
    always = [clock, curves, StepSeed(config.seed), StopAfterStep(run.stop), RouteHistograms()]
    chosen = [targets.build(node) for node in plain(config.callbacks).values() if node]
    loggers = [targets.build(node) for node in plain(config.logger).values() if node]
    node = plain(config.trainer)
    if (total := config.data.global_batch) is not None:
        node["accumulate_grad_batches"] = total // (config.data.batch_size * processes(node))
    if not trains(config.stage):
        node["limit_val_batches"] = 0
    trainer = targets.build(
        node,
        callbacks=always + chosen,
        logger=loggers or False,
        plugins=[CompleteCheckpointIO()],
        default_root_dir=str(run.path),
        use_distributed_sampler=False,  # the data module's sampler knows the ranks
        enable_model_summary=False,
    )
    set_timeout(trainer.strategy, timedelta(seconds=config.timeout_s))
    return trainer


def plain(node: Any) -> Any:
    """Convert a config node to plain Python values, with all references resolved.

    Raises:
        ConfigError: If that is impossible, e.g. since an environment variable is not set.
    """
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([unresolved(error)]) from None


def _weights(name: str) -> Path:
    """Return the local file or folder of weights that a value of section `init` names."""
    return inference.model_folder(hub.find(name))
