"""Check a composed config before anything is built or loaded; raise one error with every problem.

`dpn.config.checks` checks each section by itself. This file then checks how valid sections fit
together. It builds vision tower, projector and router on the meta device, without memory, and calls
`check()` of projector and router: that is where `router.keep=1.5`, or a layer that the decoder does
not have, is refused.
"""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpn import data, losses, routers
from dpn.common.processes import processes
from dpn.common.schema import check_arguments
from dpn.config import adopt, apply, checks, targets, verification
from dpn.config.engine import engine_of, is_deepspeed
from dpn.config.sections import Machine
from dpn.config.unread import unread
from dpn.data.sources.base import Source
from dpn.decoder.layer import build_language
from dpn.decoder.text_models import check_text_model
from dpn.model import DPNConfig
from dpn.model.assemble import build_router, build_vision
from dpn.runs.request import ConfigError, Node, Request, unresolved

log = logging.getLogger(__name__)


def check(request: Request) -> None:
    """Check a training config.

    Raises:
        ConfigError: If there is any problem, with a sentence for each.
    """
    config = _resolve(request)
    sections = checks.check_training(config)
    valid = {key: config[key] for key in _valid(sections, config)}
    problems = _with_others(sections, config)
    _refuse(problems + _unread(request, config) + checks.check_run(valid, request))
    _refuse(
        _check_objectives(config, request)
        + (apply.problems(request) or adopt.problems(request.config))
    )


def check_evaluation(request: Request) -> None:
    """Check an evaluation config; raises like `check`."""
    _refuse(checks.check_evaluation(_resolve(request)))


def check_verification(request: Request) -> None:
    """Check a verify config; raises like `check`."""
    _refuse(verification.check_verification(_resolve(request)))


def check_bench(request: Request) -> None:
    """Check a bench config; raises like `check`."""
    config = _resolve(request)
    _refuse(_with_others(checks.check_bench(config), config))


def check_plan(request: Request) -> None:
    """Check a plan config, whose data files need not exist yet; raises like `check`."""
    config = _resolve(request)
    machine = config.pop("plan", None)
    if not isinstance(machine, dict):
        raise ConfigError([f"`plan={machine}` has the wrong type; expected a mapping."])
    problems = all_problems(config, files=False)
    _refuse(problems + check_arguments("plan", Machine, machine) + _unread(request, config))


def _unread(request: Request, config: Node) -> list[str]:
    """Return the overrides that change nothing; a sweep runs them and only names them."""
    found = unread(request, config)
    if not request.in_sweep:
        return found
    for sentence in found:
        log.warning("%s", sentence)
    return []


def all_problems(config: Node, files: bool = True) -> list[str]:
    """Return the problems of a resolved training config.

    Args:
        config: Plain values.
        files: Whether to check that the data files exist.
    """
    return _with_others(checks.check_training(config), config, files)


def _with_others(sections: dict[str, list[str]], config: Node, files: bool = True) -> list[str]:
    """Return the problems of each section, and those between the sections that are valid."""
    valid = _valid(sections, config)
    return [*chain.from_iterable(sections.values()), *_check_together(config, valid, files)]


def _valid(sections: dict[str, list[str]], config: Node) -> set[str]:
    """Return the sections that passed their own check; the others are not read any further."""
    return {
        key for key, found in sections.items() if not found and isinstance(config.get(key), dict)
    }


def _check_together(config: Node, valid: set[str], files: bool) -> list[str]:
    """Check how the valid sections fit together.

    Args:
        config: Whole config.
        valid: Sections without problems of their own; the others are skipped.
        files: Whether to check that the data files exist.
    """
    problems = []
    if {"model", "projector", "router"} <= valid:
        problems += _check_parts(config)
    if {"loss", "router"} <= valid:
        problems += _check_loss(config["loss"]["name"], config["router"])
    if "data" in valid:
        node = {k: v for k, v in config["data"].items() if k != "name"}
        source = data.resolve(config["data"]["name"])(**node)
        # The base class checks settings alone, without looking for files.
        problems += source.check() if files else Source.check(source)
        if "trainer" in valid:
            problems += _check_global_batch(config["data"], processes(config["trainer"]))
    if {"model", "optim", "trainer"} <= valid:
        problems += _check_engine(config["model"], config["optim"], config["trainer"])
    return problems


def _check_objectives(config: Node, request: Request) -> list[str]:
    """Check that a run has the metrics that its sweeper searches for."""
    node = {k: v for k, v in config["data"].items() if k != "name"}
    if not request.searching or data.resolve(config["data"]["name"])(**node).split("val"):
        return []
    return [
        "The sweeper searches for the best val/accuracy, and `data` holds no rows to validate on;"
        " set data.val_file or data.holdout, or use a sweep without a search."
    ]


def _check_global_batch(data: Node, count: int) -> list[str]:
    total, each = data["global_batch"], data["batch_size"]
    if total is None or not total % (each * count):
        return []
    return [
        f"`data.global_batch={total}` is not a multiple of data.batch_size={each} times"
        f" {count} processes; change one of them, or set data.global_batch=null."
    ]


def _check_engine(model: Node, optim: Node, trainer: Node) -> list[str]:
    """Check that the engine supports the settings of the model and the optimizer."""
    problems = []
    engine = engine_of(trainer)
    on_gpu = trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    half = "16" in str(trainer.get("precision"))
    if model["attention"] in ("varlen", "flash") and not (on_gpu and half):
        problems.append(
            f"`model.attention={model['attention']}` runs only on a GPU in half precision;"
            " train there with trainer.precision=bf16-mixed, or use model.attention=auto."
        )
    if is_deepspeed(engine):
        if find_spec("deepspeed") is None:
            problems.append(
                "`trainer.strategy` needs DeepSpeed; install it: pip install 'dpn[deepspeed]'."
            )
        if getattr(targets.resolve(optim["_target_"]), "needs_whole_matrices", False):
            problems.append(
                "`optim=muon` needs whole matrices, and DeepSpeed splits them; use optim=adamw,"
                " or trainer=fsdp2."
            )
        if model["compile_layers"]:
            problems.append(
                "`model.compile_layers=true` is not known to work with DeepSpeed; use"
                " trainer=fsdp2 or trainer=ddp, or leave it false."
            )
    return problems


def _check_parts(config: Node) -> list[str]:
    """Build the model on the meta device and collect the problems of its parts."""
    try:
        model = DPNConfig(
            text_config=config["model"]["text"],
            vision_config=config["model"]["vision"],
            projector_config=config["projector"],
            router_config=config["router"],
        )
        check_text_model(model.text_config)
        with torch.device("meta"):
            tower, projector = build_vision(model)
            if problems := projector.check():
                return problems
            projector.attach(tower)
            problems = build_router(model, tower, projector).check()
            if not problems:
                build_language(model.text_config)
            return problems
    except Exception as error:
        return [f"The model cannot be built: {' '.join(str(error).split())}"]


def _check_loss(name: str, router: Node) -> list[str]:
    keep = router.get("keep")
    if name == "hinge" and keep is not None:
        return [
            f"`loss=hinge` has its own target and cannot meet router.keep={keep};"
            " use loss=policy, or router.keep=null."
        ]
    if name in ("auto", "language"):
        return []
    problems = []
    able = trainable_by(name)
    if router["name"] not in able:
        problems.append(
            f"`loss={name}` trains gates, and router={router['name']} has none that it can train;"
            f" use router={' or '.join(able)}, or loss=auto."
        )
    if losses.resolve(name).needs_keep and keep is None:
        problems.append(
            f"`loss={name}` needs a target, and router.keep is null; set it, e.g. router.keep=0.6."
        )
    return problems


def trainable_by(loss: str) -> list[str]:
    """Return the names of the routers that a loss can train."""
    named = losses.resolve(loss).trains
    return [n for n in routers.names() if n in named or loss in routers.resolve(n).losses]


def _resolve(request: Request) -> Node:
    """Resolve the whole config to plain values; an unknown run folder gets a placeholder.

    Raises:
        ConfigError: If a value is missing, or refers to one that does not exist.
    """
    whole = request.config.copy()
    if OmegaConf.select(whole, "paths.run_dir", default="") is None:
        whole.paths.run_dir = "run_dir"
    try:
        missing = sorted(OmegaConf.missing_keys(whole))
        if missing:
            raise ConfigError([f"`{key}` has no value yet; give one: {key}=..." for key in missing])
        config: Node = OmegaConf.to_container(whole, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError([unresolved(error)]) from None
    return config


def _refuse(problems: Sequence[str]) -> None:
    """Raise a `ConfigError` if there are problems."""
    if problems:
        raise ConfigError(problems)
