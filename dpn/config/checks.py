"""Check each section of a config by itself; return one sentence for each problem.

The annotated signature of the constructor that a section is passed to is its schema, so keys are
listed nowhere else. Problems between sections, and values that a part itself refuses, such as
`router.keep=1.5`, are found by `dpn.config.preflight`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dpn import benchmarks, checkpoints, data, inference, projectors, routers, vision
from dpn.common import hub
from dpn.config import auto_loss
from dpn.config.engine import import_target
from dpn.config.schema import check_arguments, keyword_only, nearest
from dpn.config.sections import (
    Bench,
    Evaluation,
    Generation,
    Init,
    Machine,
    Model,
    Paths,
    Recipe,
    Train,
    Weights,
)
from dpn.inference import Decoding
from dpn.model import DPNProcessor
from dpn.runs.request import HELD_OUT, Node, Request, is_run
from dpn.training import lora
from dpn.training.schedule import SCHEDULE_KEYS, Schedule
from dpn.training.stage import Stage

#: Registry of each section of a train config that chooses a part by its name.
_REGISTRIES: dict[str, Any] = {
    "projector": projectors,
    "router": routers,
    "loss": auto_loss,
    "data": data,
}
#: Seconds of the longest time that processes wait for each other.
_WEEK_S = 7 * 24 * 3600


def check_training(config: Node) -> dict[str, list[str]]:
    """Check a train config; return the problems of each section. A missing section is empty."""
    sections = {k: v for k, v in config.items() if isinstance(v, dict)}
    model, optim = sections.get("model", {}), sections.get("optim", {})
    schedule = {k: v for k, v in optim.items() if k in SCHEDULE_KEYS}
    optimizer = {k: v for k, v in optim.items() if k not in SCHEDULE_KEYS}
    problems = {
        "": check_arguments("", Train, config) + _check_timeout(config),
        "paths": check_arguments("paths", Paths, sections.get("paths", {})),
        "stage": _check_stage(sections.get("stage", {})),
        "init": check_arguments("init", Init, sections.get("init", {})),
        "model": _check_model(model),
        "recipe": check_arguments("recipe", Recipe, sections.get("recipe", {})),
        "optim": check_arguments("optim", Schedule, schedule)
        + _check_target("optim", optimizer, given=["params"], suggest=SCHEDULE_KEYS),
        "trainer": _check_target("trainer", sections.get("trainer", {})),
    }
    for key, registry in _REGISTRIES.items():
        problems[key] = check_part(key, sections.get(key, {}), registry)
    for group in ("logger", "callbacks"):
        for name, node in sections.get(group, {}).items():
            problems[f"{group}.{name}"] = _check_target(f"{group}.{name}", node)
    return problems


def check_bench(config: Node) -> dict[str, list[str]]:
    """Check a bench config; return the problems of each section."""
    return {
        "": check_arguments("", Bench, config) + _check_load(config),
        "model": _check_model(config.get("model") or {}),
        "projector": check_part("projector", config.get("projector") or {}, projectors),
        "router": check_part("router", config.get("router") or {}, routers),
    }


def check_machine(machine: Node) -> list[str]:
    """Check section `plan`."""
    problems = check_arguments("plan", Machine, machine)
    for key, value in machine.items():
        if isinstance(value, int | float) and value <= 0:
            problems.append(f"`plan.{key}={value}` is not possible; it must be larger than 0.")
    return problems


def _check_load(config: Node) -> list[str]:
    """Check the sizes that `dpn.bench` measures."""
    problems = []
    for key, least in (("batch_size", 1), ("text_columns", 3), ("new_tokens", 1), ("pairs", 0)):
        value = config.get(key)
        if any(isinstance(x, int) and x < least for x in _as_list(value)):
            problems.append(f"`{key}={value}` is too small; it must be at least {least}.")
        if value == []:
            problems.append(f"`{key}=[]` is empty; give at least one number.")
    return problems


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_evaluation(config: Node) -> list[str]:
    """Check an eval config."""
    problems = check_arguments("", Evaluation, config)
    problems += check_arguments("paths", Paths, config["paths"])
    problems += check_arguments("generation", Decoding, config.get("generation") or {})
    if config.get("data"):
        problems += check_part("data", config["data"], data)
    if not problems:
        problems = _check_benchmarks(config)
    problems += _check_timeout(config)
    for key in ("batch_size", "limit", "max_new_tokens"):
        if isinstance(config.get(key), int) and config[key] < 1:
            problems.append(f"`{key}={config[key]}` is too small; it must be at least 1.")
    run = Path(str(config["run"]))
    if problem := _check_model_folder(run):
        problems.append(problem)
    elif HELD_OUT in config["benchmarks"] and not (config.get("data") or is_run(run)):
        problems.append(
            f"`run={run}` is not a run folder, so it names no data set; add one: data=mosaic."
        )
    if config.get("against") and not (Path(config["against"]) / "rows.jsonl").is_file():
        problems.append(
            f"`against={config['against']}` contains no rows.jsonl; give a folder of evaluation"
            " results."
        )
    return problems


def _check_timeout(config: Node) -> list[str]:
    value = config.get("timeout_s")
    if not isinstance(value, int) or 1 <= value <= _WEEK_S:
        return []
    return [f"`timeout_s={value}` is not possible; it must be between 1 and {_WEEK_S} seconds."]


def _check_model_folder(run: Path) -> str | None:
    """Return what is wrong with the value of `run`; whether a run has a model is seen later."""
    if not run.is_dir():
        if run.exists() or not hub.is_id(str(run)):
            return f"`run={run}` is not a folder; give a run folder, a model folder or a Hub id."
        if problem := hub.why_missing(str(run)):
            return f"`run={run}` {problem}; give a run folder, a model folder or a Hub id."
    try:
        folder = inference.model_folder(run, weights=False)
        if checkpoints.holds_model(folder):
            checkpoints.model_settings(folder)
    except (checkpoints.FolderError, OSError) as error:
        return f"`run={run}` cannot be used: {error}"
    return None


def _check_benchmarks(config: Node) -> list[str]:
    """Check the names of benchmarks, and their settings."""
    chosen, known, problems = config["benchmarks"], [HELD_OUT, *benchmarks.names()], []
    if not chosen:
        problems.append("`benchmarks=[]` is empty; name at least one benchmark, or choose a suite.")
    for name in chosen:
        if name not in known:
            problems.append(f"There is no benchmark `{name}`; {nearest(name, known)}")
    for name, settings in config["settings"].items():
        if name not in chosen:
            problems.append(f"`settings.{name}` belongs to none of benchmarks={chosen}; remove it.")
        elif name in benchmarks.names():
            arguments = settings | {"root": Path(config["data_root"])}
            problems += check_arguments(f"settings.{name}", benchmarks.resolve(name), arguments)
    return problems


def _check_model(model: Node) -> list[str]:
    given = ("tokenizer", "image_size", "patch_size")
    return [
        *check_arguments("model", Model, model),
        *_check_text(model.get("text") or {}),
        *check_part("model.vision", model.get("vision") or {}, vision),
        *check_arguments(
            "model.processor", DPNProcessor, model.get("processor") or {}, given=given
        ),
        *check_arguments("model.generation", Generation, model.get("generation") or {}),
        *check_arguments("model.weights", Weights, model.get("weights") or {}),
    ]


def _check_stage(stage: Node) -> list[str]:
    problems = check_arguments("stage", Stage, stage)
    if isinstance(stage.get("lora"), dict):
        problems += check_arguments("stage.lora", lora.add, stage["lora"], given=["language"])
    dense = stage.get("dense", 0.0)
    if isinstance(dense, int | float) and not 0 <= dense < 1:
        problems.append(f"`stage.dense={dense}` is not possible; it must be in [0, 1).")
    return problems


def check_part(key: str, node: Node, registry: Any) -> list[str]:
    """Check a section that chooses a part by its name.

    Keyword-only arguments of the part come from the code, unless the part is a dataclass, so the
    section must not set them.

    Args:
        key: Key of the section, e.g. `router`.
        node: Section with `name` and the arguments of the part.
        registry: Package with `names()` and `resolve(name)`, e.g. `dpn.routers`.
    """
    name = node.get("name")
    if not isinstance(name, str) or name not in registry.names():
        return [f"`{key}.name={name}` is unknown; {nearest(str(name), registry.names())}"]
    part = registry.resolve(name)
    given = [] if is_dataclass(part) else keyword_only(part)
    return check_arguments(key, part, node, given=given, also=["name"])


def _check_target(
    key: str, node: Any, given: Sequence[str] = (), suggest: Sequence[str] = ()
) -> list[str]:
    """Check a section that chooses a part by its `_target_`, and all sections in it.

    Args:
        key: Key of the section, e.g. `trainer`.
        node: Section with `_target_` and the arguments of the part.
        given: Arguments that the code passes.
        suggest: Further names to suggest for an unknown key.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return [f"`{key}` needs a `_target_`: the import path of a class or function."]
    try:
        target: Callable[..., Any] = import_target(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        return [f"`{key}._target_={node['_target_']}` cannot be imported: {error}."]
    arguments = {k: v for k, v in node.items() if not (k.startswith("_") and k.endswith("_"))}
    problems = check_arguments(key, target, arguments, given=given, suggest=suggest)
    for name, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            problems += _check_target(f"{key}.{name}", value)
    return problems


def _check_text(text: Node) -> list[str]:
    kind = text.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        known = nearest(str(kind), CONFIG_MAPPING)
        return [f"`model.text.model_type={kind}` is not a Hugging Face text model; {known}"]
    return check_arguments("model.text", CONFIG_MAPPING[kind], text, also=["model_type"])


def check_run(config: Node, request: Request) -> list[str]:
    """Check what a run needs from outside: its weights, a GPU, and a launcher for several nodes."""
    trainer = config.get("trainer") or {}
    problems = _check_weights(config)
    nodes = trainer.get("num_nodes", 1)
    if trainer.get("accelerator") in ("gpu", "cuda") and not torch.accelerator.is_available():
        problems.append(
            f"`trainer.accelerator={trainer['accelerator']}` needs a GPU, and PyTorch finds none;"
            " run it on a machine with a GPU, or on the CPU with trainer=cpu."
        )
    if request.in_sweep and nodes != 1 and "SLURM_NTASKS" not in os.environ:
        command = " ".join(request.command)
        problems.append(
            f"`trainer.num_nodes={nodes}` inside a multirun needs a launcher that starts processes"
            f" on all nodes: hydra/launcher=slurm. Or run each job separately: {command}."
        )
    return problems


def _check_weights(config: Node) -> list[str]:
    """Check that all weights and the tokenizer can be found."""
    model, init = config.get("model") or {}, config.get("init") or {}
    wanted = {f"init.{part}": name for part, name in init.items()}
    if init.get("model") is None and model.get("tokenizer") != init.get("language"):
        wanted["model.tokenizer"] = model.get("tokenizer")
    origin = {name: f"model.weights.{part}" for part, name in (model.get("weights") or {}).items()}
    problems = []
    for key, name in wanted.items():
        if isinstance(name, str) and (problem := hub.why_missing(name)):
            hint = f"{origin.get(name, key)}=FOLDER_OR_HUB_ID{_ALTERNATIVES.get(key, '')}"
            problems.append(f"`{key}={name}` {problem}; give {hint}.")
    return problems


#: Further suggestions where weights are missing.
_ALTERNATIVES = {
    "init.language": ", or init=random",
    "init.vision": ", or init=random",
    "init.slow_vision": ", or init=random",
    "init.projector": ", or train one with stage=pretrain, or set init.projector=null",
}
