"""Check each section of a config by itself; return one sentence for each problem.

The annotated signature of the constructor that a section is passed to is its schema, so keys are
listed nowhere else. Problems between sections, and values that a part itself refuses, such as
`router.keep=1.5`, are found by `dpn.config.preflight`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dpn import benchmarks, checkpoints, data, inference, projectors, routers, vision
from dpn.common import hub
from dpn.common.errors import SettingError
from dpn.common.method_files import method_defaults
from dpn.common.schema import check_arguments, keyword_only, nearest
from dpn.common.text import one_line
from dpn.config import auto_loss, targets
from dpn.config.library_ranges import LOGGER, OPTIMIZER, STRATEGY, TEXT, TRAINER
from dpn.config.sections import (
    Bench,
    Evaluation,
    Generation,
    Init,
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
#: Arguments of the Trainer that `dpn.config.build` passes.
_OF_EVERY_RUN = (
    *("callbacks", "logger", "plugins", "default_root_dir", "use_distributed_sampler"),
    "enable_model_summary",
)


def check_training(config: Node) -> dict[str, list[str]]:
    """Check a train config; return the problems of each section. A missing section is empty."""
    sections = {k: v for k, v in config.items() if isinstance(v, dict)}
    model, optim = sections.get("model", {}), sections.get("optim", {})
    schedule = {k: v for k, v in optim.items() if k in SCHEDULE_KEYS}
    optimizer = {k: v for k, v in optim.items() if k not in SCHEDULE_KEYS}
    problems = {
        "": check_arguments("", Train, config),
        "paths": check_arguments("paths", Paths, sections.get("paths", {})),
        "stage": _check_stage(sections.get("stage", {})),
        "init": check_arguments("init", Init, sections.get("init", {})),
        "model": _check_model(model),
        "recipe": check_arguments("recipe", Recipe, sections.get("recipe", {})),
        "optim": check_arguments("optim", Schedule, schedule)
        + _check_target(
            "optim", optimizer, given=["params"], suggest=SCHEDULE_KEYS, ranges=OPTIMIZER
        ),
        "trainer": _check_target(
            "trainer", sections.get("trainer", {}), given=_OF_EVERY_RUN, ranges=TRAINER
        ),
    }
    for key, registry in _REGISTRIES.items():
        problems[key] = check_part(key, sections[key], registry) if key in sections else []
    if not problems["optim"]:
        problems["optim"] = _refused_by_optimizer(optimizer)
    if not problems["trainer"]:
        problems["trainer"] = _check_strategy(sections["trainer"].get("strategy"))
    for group in ("logger", "callbacks"):
        for name, node in sections.get(group, {}).items():
            if node is not None:  # null switches it off
                problems[f"{group}.{name}"] = _check_target(f"{group}.{name}", node, ranges=LOGGER)
    return problems


def check_bench(config: Node) -> dict[str, list[str]]:
    """Check a bench config; return the problems of each section."""
    return {
        "": check_arguments("", Bench, config),
        "model": _check_model(_section(config, "model")),
        "projector": check_part("projector", _section(config, "projector"), projectors),
        "router": check_part("router", _section(config, "router"), routers),
    }


def _section(node: Node, key: str) -> Node:
    """Return a section; an empty one if it is missing or no mapping, which is its own problem."""
    value = node.get(key)
    return value if isinstance(value, dict) else {}


def check_evaluation(config: Node) -> list[str]:
    """Check an eval config."""
    problems = check_arguments("", Evaluation, config)
    problems += check_arguments("paths", Paths, _section(config, "paths"))
    problems += check_arguments("generation", Decoding, _section(config, "generation"))
    if data_section := _section(config, "data"):
        problems += check_part("data", data_section, data)
    for part in ("router", "projector"):
        if section := _section(config, part):
            defaults, _ = method_defaults(part, str(section.get("name")))
            problems += check_part(part, defaults | section, _REGISTRIES[part])
    if not problems:
        problems = _check_benchmarks(config)
    run, chosen, against = (config.get(key) for key in ("run", "benchmarks", "against"))
    if isinstance(run, str):
        found = [_check_model_folder(Path(run))]
        if not found[0]:
            if HELD_OUT in (chosen if isinstance(chosen, list) else ()) and not data_section:
                found += _without_data(Path(run))
            found += _check_methods(run, config) if not problems else []
        problems += filter(None, found)
    if isinstance(against, str) and not (Path(against) / "rows.jsonl").is_file():
        problems.append(
            f"`against={against}` contains no rows.jsonl; give a folder of evaluation results."
        )
    return problems


def _check_methods(run: str, config: Node) -> list[str]:
    """Check that the methods of an evaluation can replace those of the model's folder."""
    methods = {key: config.get(key) for key in ("router", "projector", "keep")}
    if not any(methods.values()):
        return []
    try:
        folder = inference.model_folder(run, weights=False)
        if checkpoints.holds_model(folder):
            inference.check_methods(folder, run, **methods)
    except (checkpoints.FolderError, OSError, SettingError) as error:
        return [str(error)]
    return []


def _without_data(run: Path) -> list[str]:
    """Check that a folder names the data set of its held-out questions."""
    if is_run(run):
        return []
    return [f"`run={run}` is not a run folder, so it names no data set; add one: data=mosaic."]


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
    problems = check_arguments("model", Model, model)
    if "text" in model and isinstance(model["text"], dict):
        problems += _check_text(model["text"])
    if "vision" in model and isinstance(model["vision"], dict):
        problems += check_part("model.vision", model["vision"], vision)
    for key, part, passed in (
        ("processor", DPNProcessor, given),
        ("generation", Generation, ()),
        ("weights", Weights, ()),
    ):
        problems += check_arguments(f"model.{key}", part, _section(model, key), given=passed)
    return problems


def _check_stage(stage: Node) -> list[str]:
    problems = check_arguments("stage", Stage, stage)
    if isinstance(stage.get("lora"), dict):
        problems += check_arguments("stage.lora", lora.add, stage["lora"], given=["language"])
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
    key: str,
    node: Any,
    given: Sequence[str] = (),
    suggest: Sequence[str] = (),
    ranges: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Check a section that chooses a part by its `_target_`, and all sections in it.

    Args:
        key: Key of the section, e.g. `trainer`.
        node: Section with `_target_` and the arguments of the part.
        given: Arguments that the code passes.
        suggest: Further names to suggest for an unknown key.
        ranges: Ranges of arguments, where the part's signature has none.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return [f"`{key}` needs a `_target_`: the import path of a class."]
    every = targets.all_targets(node, key)
    if refused := [(name, x, why) for name, x in every if (why := targets.refusal(x))]:
        return [f"`{name}={target}` {why}." for name, target, why in refused]
    try:
        part = targets.resolve(node["_target_"])
    except SettingError as error:
        return [f"`{key}`: {error}"]
    arguments = {k: v for k, v in node.items() if k != "_target_"}
    problems = check_arguments(key, part, arguments, given=given, suggest=suggest, ranges=ranges)
    for name, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            problems += _check_target(f"{key}.{name}", value, ranges=STRATEGY)
    return problems


def _refused_by_optimizer(node: Node) -> list[str]:
    """Build the optimizer for one small matrix; return what it says about its arguments."""
    group = {"params": [torch.nn.Parameter(torch.zeros(2, 2))]}
    kind = targets.resolve(node["_target_"])
    try:
        kind([group], **targets.arguments(node))
    except Exception as error:
        return [f"`optim`: {kind.__name__} refuses its arguments: {one_line(str(error))}."]
    return []


def _check_strategy(strategy: Any) -> list[str]:
    """Check the name of a strategy of Lightning."""
    from lightning.pytorch.strategies import StrategyRegistry

    known = ["auto", *StrategyRegistry.available_strategies()]
    if not isinstance(strategy, str) or strategy in known:
        return []
    return [f"`trainer.strategy={strategy}` is unknown; {nearest(strategy, known)}"]


def _check_text(text: Node) -> list[str]:
    kind = text.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        known = nearest(str(kind), CONFIG_MAPPING)
        return [f"`model.text.model_type={kind}` is not a Hugging Face text model; {known}"]
    return check_arguments(
        "model.text", CONFIG_MAPPING[kind], text, also=["model_type"], ranges=TEXT
    )


def check_run(valid: Node, request: Request) -> list[str]:
    """Check what a run needs from outside: its weights, a GPU, and a launcher for several nodes.

    Args:
        valid: Sections of a train config that have no problems of their own.
        request: Request with the config.
    """
    trainer = valid.get("trainer", {})
    problems = _check_weights(valid.get("model", {}), valid.get("init", {}))
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


def _check_weights(model: Node, init: Node) -> list[str]:
    """Check that all weights and the tokenizer can be found."""
    wanted = {f"init.{part}": name for part, name in init.items()}
    if init.get("model") is None and model.get("tokenizer") != init.get("language"):
        wanted["model.tokenizer"] = model.get("tokenizer")
    origin = {name: f"model.weights.{part}" for part, name in model.get("weights", {}).items()}
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
