"""Before anything is built: one error with everything that is wrong with a config."""

import math
from typing import Any

import torch
from transformers import AutoConfig

from dpn import benchmarks, data, losses, projectors, routers, vision
from dpn.common.distributed import processes
from dpn.config import apply, checks
from dpn.config.auto_loss import AutoLoss
from dpn.config.checks import Parts
from dpn.cost import TextShape
from dpn.data.base import Source
from dpn.model import DPNProcessor
from dpn.runs.request import Node, Request, refuse, resolve


def check(request: Request) -> None:
    """Of a training run.

    Raises:
        ConfigError: with everything that is wrong.
    """
    refuse(checks.of_training(resolve(request), PARTS, request))
    refuse(apply.problems(request))


def check_evaluation(request: Request) -> None:
    """The same of an evaluation."""
    refuse(checks.of_evaluation(resolve(request), PARTS))


def check_bench(request: Request) -> None:
    """The same of a benchmark."""
    refuse(checks.of_benchmark(resolve(request), PARTS))


def check_plan(request: Request) -> None:
    """The same of a plan."""
    refuse(checks.of_plan(resolve(request), PARTS))


class _Losses:
    """The files of `dpn/losses`, and `auto`."""

    @staticmethod
    def names() -> list[str]:
        return ["auto", *losses.names()]

    @staticmethod
    def resolve(name: str) -> type[Any]:
        return AutoLoss if name == "auto" else losses.resolve(name)


def _fit(config: Node, sound: set[str], files: bool = True) -> list[str]:
    """What is wrong between parts that are sound by themselves; `files`: and on the disk."""
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
    if {"model", "trainer"} <= sound:
        problems += _fit_speed(config["model"], config["trainer"])
    return problems


def _fit_batch(data: Node, count: int) -> list[str]:
    whole, each = data["global_batch"], data["batch_size"]
    if whole is None or not whole % (each * count):
        return []
    return [
        f"`data.global_batch={whole}` is no multiple of data.batch_size={each} on"
        f" {count} processes; change one of them, or set data.global_batch=null."
    ]


def _fit_speed(model: Node, trainer: Node) -> list[str]:
    problems = []
    on_gpu = trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    half = "16" in str(trainer.get("precision"))
    if model["attention"] in ("varlen", "flash") and not (on_gpu and half):
        problems.append(
            f"`model.attention={model['attention']}` is a kernel of GPUs in half precision; train"
            " with trainer.precision=bf16-mixed on a GPU, or take model.attention=auto."
        )
    strategy = str(trainer.get("strategy"))
    if model["compile_layers"] and ("ZeRO" in strategy or "deepspeed" in strategy):
        problems.append(
            "`model.compile_layers=true` is not known to work with DeepSpeed; use trainer=fsdp2 or"
            " trainer=ddp, or leave it false."
        )
    return problems


def _fit_model(config: Node) -> list[str]:
    """Built on the meta device, which costs no memory."""
    text = dict(config["model"]["text"])
    try:
        text_config = AutoConfig.for_model(text.pop("model_type"), **text)
        with torch.device("meta"):
            tower = vision.build(**config["model"]["vision"])
            projector = projectors.build(
                **config["projector"],
                input_size=tower.output_size,
                output_size=text_config.hidden_size,
                grid=tower.grid,
            )
            if problems := projector.check():
                return problems
            projector.fit(tower)
            router = routers.build(
                **config["router"],
                text=TextShape.of(text_config, base_rows=math.prod(tower.grid)),
                grid=projector.grid_after(tower.grid),
            )
            return router.check()
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


PARTS = Parts(
    vision=vision,
    projector=projectors,
    router=routers,
    loss=_Losses(),
    data=data,
    benchmark=benchmarks,
    processor=DPNProcessor,
    fit=_fit,
)
