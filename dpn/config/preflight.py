"""One error with every problem of a config, before anything is built or loaded."""

from importlib.util import find_spec
from itertools import chain

import torch

from dpn import data, losses, routers
from dpn.common.distributed import processes
from dpn.config import apply, checks
from dpn.config.engine import engine_of, import_target, is_deepspeed
from dpn.data.base import Source
from dpn.model import DPNConfig
from dpn.model.assemble import build_router, build_vision
from dpn.runs.request import Node, Request, refuse, resolve


def check(request: Request) -> None:
    """Check a training config.

    Raises:
        ConfigError: With every problem.
    """
    config = resolve(request)
    problems = _with_fit(checks.training_sections(config), config)
    refuse(problems + checks.check_run(config, request))
    refuse(apply.problems(request))


def check_evaluation(request: Request) -> None:
    """Check an evaluation config; raises like `check`."""
    refuse(checks.check_evaluation(resolve(request)))


def check_bench(request: Request) -> None:
    """Check a bench config; raises like `check`."""
    config = resolve(request)
    refuse(_with_fit(checks.bench_sections(config), config))


def check_plan(request: Request) -> None:
    """Check a plan config, whose files need not exist yet; raises like `check`."""
    config = resolve(request)
    machine = config.pop("plan")
    problems = _with_fit(checks.training_sections(config), config, files=False)
    refuse(problems + checks.check_machine(machine))


def _with_fit(sections: dict[str, list[str]], config: Node, files: bool = True) -> list[str]:
    """Problems of all sections, and between the sections that have none themselves."""
    sound = {section for section, found in sections.items() if not found}
    return [*chain.from_iterable(sections.values()), *_fit(config, sound, files)]


def _fit(config: Node, sound: set[str], files: bool = True) -> list[str]:
    """Problems between sections that have none themselves; with `files` also those on the disk."""
    problems = []
    if {"model", "projector", "router"} <= sound:
        problems += _fit_model(config)
    if {"loss", "router"} <= sound:
        problems += _fit_loss(config["loss"]["name"], config["router"])
    if "data" in sound:
        node = {k: v for k, v in config["data"].items() if k != "name"}
        source = data.resolve(config["data"]["name"])(**node)
        problems += source.check() if files else Source.check(source)
        if "trainer" in sound:
            problems += _fit_batch(config["data"], processes(config["trainer"]))
    if {"model", "optim", "trainer"} <= sound:
        problems += _fit_engine(config["model"], config["optim"], config["trainer"])
    return problems


def _fit_batch(data: Node, count: int) -> list[str]:
    whole, each = data["global_batch"], data["batch_size"]
    if whole is None or not whole % (each * count):
        return []
    return [
        f"`data.global_batch={whole}` is no multiple of data.batch_size={each} on"
        f" {count} processes; change one of them, or set data.global_batch=null."
    ]


def _fit_engine(model: Node, optim: Node, trainer: Node) -> list[str]:
    """Problems of the engine with what the model and the optimizer ask of it."""
    problems = []
    engine = engine_of(trainer)
    on_gpu = trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    half = "16" in str(trainer.get("precision"))
    if model["attention"] in ("varlen", "flash") and not (on_gpu and half):
        problems.append(
            f"`model.attention={model['attention']}` is a kernel of GPUs in half precision; train"
            " with trainer.precision=bf16-mixed on a GPU, or take model.attention=auto."
        )
    if is_deepspeed(engine):
        if find_spec("deepspeed") is None:
            problems.append(
                "`trainer.strategy` needs DeepSpeed; install it: pip install 'dpn[deepspeed]'."
            )
        if getattr(import_target(optim["_target_"]), "needs_whole_matrices", False):
            problems.append(
                "`optim=muon` needs whole matrices, and DeepSpeed cuts them up; use optim=adamw,"
                " or trainer=fsdp2."
            )
        if model["compile_layers"]:
            problems.append(
                "`model.compile_layers=true` is not known to work with DeepSpeed; use"
                " trainer=fsdp2 or trainer=ddp, or leave it false."
            )
    return problems


def _fit_model(config: Node) -> list[str]:
    """Problems of building vision, projector and router, on the meta device, without memory."""
    try:
        model = DPNConfig(
            text_config=config["model"]["text"],
            vision_config=config["model"]["vision"],
            projector_config=config["projector"],
            router_config=config["router"],
        )
        with torch.device("meta"):
            tower, projector = build_vision(model)
            if problems := projector.check():
                return problems
            projector.fit(tower)
            return build_router(model, tower, projector).check()
    except Exception as error:
        return [f"The model can not be built: {' '.join(str(error).split())}"]


def _fit_loss(name: str, router: Node) -> list[str]:
    keep = router.get("keep")
    if name == "hinge" and keep is not None:
        return [
            f"`loss=hinge` has its own target and can not meet router.keep={keep};"
            " use loss=policy, or router.keep=null."
        ]
    if name in ("auto", "language"):
        return []
    problems = []
    if name not in routers.resolve(router["name"]).losses:
        able = [other for other in routers.names() if name in routers.resolve(other).losses]
        problems.append(
            f"`loss={name}` trains gates, and router={router['name']} has none that it can train;"
            f" use router={' or '.join(able)}, or loss=auto."
        )
    if losses.resolve(name).needs_keep and keep is None:
        problems.append(
            f"`loss={name}` steers to router.keep, which is null; give it, e.g. router.keep=0.6."
        )
    return problems
