"""What is wrong with a composed config, one sentence each, before any weight is loaded.

The schema of a part is its constructor's annotated signature, so there is no second list of keys.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dpn.common import hub
from dpn.config.schema import check_arguments, keyword_only, nearest
from dpn.config.sections import (
    Benchmark,
    Evaluation,
    Generation,
    Init,
    LoRA,
    Machine,
    Model,
    Paths,
    Stage,
    Train,
    Weights,
)
from dpn.inference import Decoding
from dpn.runs.request import HELD_OUT, Node, Request, is_run
from dpn.training.schedule import SCHEDULE_KEYS, Schedule


class Family(Protocol):
    """Parts that are chosen by name, e.g. the package `dpn.routers`."""

    def names(self) -> list[str]:
        """All names."""

    def resolve(self, name: str) -> type[Any]:
        """The class of a name."""


@dataclass(frozen=True)
class Parts:
    """What configs can choose from.

    Attributes:
        vision: families of parts that are chosen by name, and likewise the next five.
        processor: class behind `model.processor`.
        fit: says what is wrong between parts, given the config, the sections that are sound, and
            whether files have to be there.
    """

    vision: Family
    projector: Family
    router: Family
    loss: Family
    data: Family
    benchmark: Family
    processor: type[Any]
    fit: Callable[..., list[str]]


def of_training(config: Node, parts: Parts, request: Request) -> list[str]:
    """What is wrong with a train config, and with how it is started."""
    return _with_fit(_check_sections(config, parts), config, parts) + _check_run(config, request)


def of_plan(config: Node, parts: Parts) -> list[str]:
    """The same of a plan config: a train config whose files need not be there yet."""
    machine = config["plan"]
    config = {key: value for key, value in config.items() if key != "plan"}
    problems = _with_fit(_check_sections(config, parts), config, parts, files=False)
    problems += check_arguments("plan", Machine, machine)
    for key, value in machine.items():
        if isinstance(value, int | float) and value <= 0:
            problems.append(f"`plan.{key}={value}` is not possible; it must be larger than 0.")
    return problems


def of_benchmark(config: Node, parts: Parts) -> list[str]:
    """The same of a bench config."""
    sections = {
        "": check_arguments("", Benchmark, config),
        "model": _check_model(config.get("model") or {}, parts),
        "projector": check_part("projector", config.get("projector") or {}, parts.projector),
        "router": check_part("router", config.get("router") or {}, parts.router),
    }
    problems = _with_fit(sections, config, parts)
    for key, least in (("batch_size", 1), ("text_columns", 3), ("new_tokens", 1), ("pairs", 0)):
        value = config.get(key)
        if any(isinstance(x, int) and x < least for x in _as_list(value)):
            problems.append(f"`{key}={value}` is too small; it must be at least {least}.")
        if value == []:
            problems.append(f"`{key}=[]` measures nothing; give a number or some.")
    return problems


def _with_fit(
    sections: dict[str, list[str]], config: Node, parts: Parts, files: bool = True
) -> list[str]:
    """The problems of all sections, and of how those without any fit together."""
    sound = {section for section, found in sections.items() if not found}
    return [*chain.from_iterable(sections.values()), *parts.fit(config, sound, files)]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def of_evaluation(config: Node, parts: Parts) -> list[str]:
    """What is wrong with an eval config."""
    problems = check_arguments("", Evaluation, config)
    problems += check_arguments("paths", Paths, config["paths"])
    problems += check_arguments("generation", Decoding, config.get("generation") or {})
    if config.get("data"):
        problems += check_part("data", config["data"], parts.data)
    if not problems:
        problems = _check_benchmarks(config, parts.benchmark)
    for key in ("batch_size", "limit", "max_new_tokens"):
        if isinstance(config.get(key), int) and config[key] < 1:
            problems.append(f"`{key}={config[key]}` is too small; it must be at least 1.")
    run = Path(str(config["run"]))
    if not run.is_dir():
        problems.append(f"`run={run}` is no folder; give a run folder or a model folder.")
    elif HELD_OUT in config["benchmarks"] and not (config.get("data") or is_run(run)):
        problems.append(f"`run={run}` is no run folder, so it names no data; add data=mosaic.")
    if config.get("against") and not (Path(config["against"]) / "rows.jsonl").is_file():
        problems.append(f"`against={config['against']}` holds no rows.jsonl; give its results.")
    return problems


def _check_benchmarks(config: Node, family: Family) -> list[str]:
    """What is wrong with the names of benchmarks and with their settings."""
    chosen, known, problems = config["benchmarks"], [HELD_OUT, *family.names()], []
    if not chosen:
        problems.append("`benchmarks=[]` asks nothing; name some, or take a suite.")
    for name in chosen:
        if name not in known:
            problems.append(f"There is no benchmark `{name}`; {nearest(name, known)}")
    for name, settings in config["settings"].items():
        if name not in chosen:
            problems.append(f"`settings.{name}` is for none of benchmarks={chosen}.")
        elif name in family.names():
            arguments = settings | {"root": Path(config["data_root"])}
            problems += check_arguments(f"settings.{name}", family.resolve(name), arguments)
    return problems


def _check_sections(config: Node, parts: Parts) -> dict[str, list[str]]:
    """Names and types of every section; a section that is missing or no mapping is empty."""
    sections = {k: v for k, v in config.items() if isinstance(v, dict)}
    model, optim = sections.get("model", {}), sections.get("optim", {})
    schedule = {k: v for k, v in optim.items() if k in SCHEDULE_KEYS}
    own = {k: v for k, v in optim.items() if k not in SCHEDULE_KEYS}
    problems = {
        "": check_arguments("", Train, config),
        "paths": check_arguments("paths", Paths, sections.get("paths", {})),
        "stage": _check_stage(sections.get("stage", {})),
        "init": check_arguments("init", Init, sections.get("init", {})),
        "model": _check_model(model, parts),
        "optim": check_arguments("optim", Schedule, schedule)
        + check_target("optim", own, given=["params"], others=SCHEDULE_KEYS),
        "trainer": check_target("trainer", sections.get("trainer", {})),
    }
    for key in ("projector", "router", "loss", "data"):
        problems[key] = check_part(key, sections.get(key, {}), getattr(parts, key))
    for group in ("logger", "callbacks"):
        for name, node in sections.get(group, {}).items():
            problems[f"{group}.{name}"] = check_target(f"{group}.{name}", node)
    return problems


def _check_model(model: Node, parts: Parts) -> list[str]:
    given = ("tokenizer", "image_size", "patch_size")
    return [
        *check_arguments("model", Model, model),
        *_check_text(model.get("text") or {}),
        *check_part("model.vision", model.get("vision") or {}, parts.vision),
        *check_arguments(
            "model.processor", parts.processor, model.get("processor") or {}, given=given
        ),
        *check_arguments("model.generation", Generation, model.get("generation") or {}),
        *check_arguments("model.weights", Weights, model.get("weights") or {}),
    ]


def _check_stage(stage: Node) -> list[str]:
    problems = check_arguments("stage", Stage, stage)
    if isinstance(stage.get("lora"), dict):
        problems += check_arguments("stage.lora", LoRA, stage["lora"])
    dense = stage.get("dense", 0.0)
    if isinstance(dense, int | float) and not 0 <= dense < 1:
        problems.append(f"`stage.dense={dense}` is not possible; it can be from 0 to below 1.")
    return problems


def check_part(key: str, node: Node, family: Family) -> list[str]:
    """A part that is chosen by name; keyword-only arguments of a module come from the code."""
    name = node.get("name")
    if not isinstance(name, str) or name not in family.names():
        return [f"`{key}.name={name}` is unknown; {nearest(str(name), family.names())}"]
    part = family.resolve(name)
    given = [] if is_dataclass(part) else keyword_only(part)
    return check_arguments(key, part, node, given=given, also=["name"])


def check_target(
    key: str, node: Any, given: Sequence[str] = (), others: Sequence[str] = ()
) -> list[str]:
    """A part that is chosen by `_target_`, and what is nested in it.

    Args:
        key: where it stands.
        node: what the config says.
        given: arguments that the code passes.
        others: keys beside the arguments, for suggestions.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return [f"`{key}` needs a `_target_`, the dotted name of what to build."]
    module, _, name = node["_target_"].rpartition(".")
    try:
        target: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        return [f"`{key}._target_={node['_target_']}` can not be imported: {error}."]
    own = {k: v for k, v in node.items() if not (k.startswith("_") and k.endswith("_"))}
    problems = check_arguments(key, target, own, given=given, suggest=others)
    for name, value in own.items():
        if isinstance(value, dict) and "_target_" in value:
            problems += check_target(f"{key}.{name}", value)
    return problems


def _check_text(text: Node) -> list[str]:
    kind = text.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        known = nearest(str(kind), CONFIG_MAPPING)
        return [f"`model.text.model_type={kind}` is no Hugging Face text model; {known}"]
    return check_arguments("model.text", CONFIG_MAPPING[kind], text, also=["model_type"])


def _check_run(config: Node, request: Request) -> list[str]:
    """Weights, and how the run is started."""
    trainer = config.get("trainer") or {}
    problems = _check_weights(config) + _check_engine(trainer, config.get("optim") or {})
    nodes = trainer.get("num_nodes", 1)
    if request.in_sweep and nodes != 1 and "SLURM_NTASKS" not in os.environ:
        command = " ".join(request.command)
        problems.append(
            f"`trainer.num_nodes={nodes}` inside a multirun needs a launcher that starts processes"
            f" on all nodes: hydra/launcher=slurm. Or run each job by itself: {command}."
        )
    return problems


def _check_engine(trainer: Node, optim: Node) -> list[str]:
    """What this machine lacks for the trainer, and what its strategy can not do."""
    problems = []
    if trainer.get("accelerator") in ("gpu", "cuda") and not torch.accelerator.is_available():
        problems.append(
            f"`trainer.accelerator={trainer['accelerator']}` needs a GPU, and PyTorch sees none;"
            " run it where there is one, or on the CPU: trainer=default."
        )
    if "ZeRO" in str(trainer.get("strategy")):
        if find_spec("deepspeed") is None:
            problems.append(
                "`trainer.strategy` needs DeepSpeed; install it: pip install 'dpn[deepspeed]'."
            )
        if "Muon" in str(optim.get("_target_")):
            problems.append(
                "`optim=muon` needs whole matrices, and DeepSpeed cuts them up; use optim=adamw,"
                " or trainer=fsdp2."
            )
    return problems


def _check_weights(config: Node) -> list[str]:
    """Every place of weights, and of the tokenizer, that can not be found."""
    model, init = config.get("model") or {}, config.get("init") or {}
    wanted = {f"init.{part}": name for part, name in init.items()}
    if init.get("model") is None and model.get("tokenizer") != init.get("language"):
        wanted["model.tokenizer"] = model.get("tokenizer")
    usual = {name: f"model.weights.{part}" for part, name in (model.get("weights") or {}).items()}
    problems = []
    for key, name in wanted.items():
        if isinstance(name, str) and (problem := hub.why_missing(name)):
            hint = f"{usual.get(name, key)}=FOLDER_OR_HUB_ID{_INSTEAD.get(key, '')}"
            problems.append(f"`{key}={name}` {problem}; give {hint}.")
    return problems


#: What else a user may want where weights are missing.
_INSTEAD = {
    "init.language": ", or init=random",
    "init.vision": ", or init=random",
    "init.slow_vision": ", or init=random",
    "init.projector": ", or train one with stage=pretrain, or set init.projector=null",
}
