"""Estimate memory and time of a training run before anything is downloaded or started.

    python -m dpn.plan experiment=dpn_llava_1_5_7b trainer.devices=8
    python -m dpn.plan experiment=llava_1_5_7b trainer.devices=8 plan.peak_tflops=312

All settings of `python -m dpn.train` are accepted. The memory of CUDA itself, of communication and
of fragmentation is not included; leave some GiB for them.
"""

# Functions import what needs torch, so that `--help` and a misspelt name are answered before.

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.table import Table

from dpn.cli.door import front_door
from dpn.common.processes import processes
from dpn.common.table import terminal
from dpn.config.engine import engine_of
from dpn.config.sections import Machine
from dpn.runs.request import ConfigError, Request

if TYPE_CHECKING:
    from dpn.measure.footprint import Memory, Rehearsal, Setup

#: Published number of rows in the files of LLaVA's recipes, and the assumed (not counted) mean
#: number of text tokens in a sample.
KNOWN_FILES = {
    "llava_v1_5_mix665k.json": (665_298, 256),
    "blip_laion_cc_sbu_558k.json": (558_128, 32),
}


@dataclass(frozen=True)
class Duration:
    """Estimated duration of a run.

    Attributes:
        steps: Number of optimizer steps.
        step_flops: FLOPs per step on all GPUs, with the visual work that `router.keep` aims at, or
            with the most rows if it is not set.
        hours: Hours for all steps.
        least_hours: Hours if every sample kept the fewest rows.
    """

    steps: int
    step_flops: float
    hours: float
    least_hours: float


@front_door("plan")
def main(request: Request) -> None:
    """Command line of `python -m dpn.plan`."""
    print_result(*plan(request))


def plan(request: Request) -> tuple[dict[str, "Memory"], dict[str, Any]]:
    """Estimate the memory per GPU for average and for longest samples, and figures of the run."""
    from dpn.config import build, preflight
    from dpn.measure.fitting import verdict
    from dpn.measure.footprint import Rehearsal
    from dpn.metrics.memory import GIB

    preflight.check_plan(request)
    config = request.config
    machine, setup = Machine(**build.plain(config.plan)), setup_of(config)
    samples, samples_from = epoch_samples(config, machine)
    module = build.meta_module(config)
    if module.model.projector.adaptive:
        raise ConfigError(
            [
                f"`projector={config.projector.name}` keeps a number of rows that depends on the"
                " image, so it cannot be planned; set projector.keep if it has one, or plan"
                " projector=mlp, which needs more."
            ]
        )
    rehearsal = Rehearsal(module)
    texts, texts_from = texts_of(config, machine, rehearsal)
    memory = {name: rehearsal.memory(setup, text) for name, text in texts.items()}
    text = texts["average samples"]
    time = duration(config, machine, setup, rehearsal, text, samples)
    total = {name: each.total / GIB for name, each in memory.items()}
    return memory, {
        "engine": setup.engine,
        "gpus": setup.processes,
        "memory/average_gib": total["average samples"],
        "memory/longest_gib": total["longest samples"],
        "memory/gpu_gib": machine.memory_gib,
        "time/steps": time.steps,
        "time/step_flops": time.step_flops,
        "time/hours": time.hours,
        "time/hours_fewest_rows": time.least_hours,
        "assumed": f"{machine.utilisation:g} of {machine.peak_tflops:g} TFLOP/s; {texts_from};"
        f" one image each; {rehearsal.samples(setup, text)} samples in a batch; {samples_from}",
        "verdict": verdict(rehearsal, setup, texts, machine.memory_gib, config.data.global_batch),
    }


def setup_of(config: DictConfig) -> "Setup":
    """Return how a training config distributes a run over GPUs.

    Raises:
        ConfigError: If the engine or the precision is not supported.
    """
    from dpn.config import build
    from dpn.measure.footprint import Setup

    trainer = build.plain(config.trainer)
    count, precision = processes(trainer), trainer.get("precision", "32-true")
    if precision not in ("32-true", "bf16-mixed"):
        raise ConfigError(
            [f"`trainer.precision={precision}` cannot be planned; use `bf16-mixed` or `32-true`."]
        )
    common = {
        "half": precision == "bf16-mixed",
        "processes": count,
        "batch_size": config.data.batch_size,
        "rows_per_batch": config.data.get("rows_per_batch"),
    }
    engine = engine_of(trainer)
    if engine in ("single", "ddp", "fsdp2"):
        return Setup(engine, **common)
    if engine in ("zero2", "zero3"):
        zero = trainer["strategy"]["config"]["zero_optimization"]
        return Setup(
            engine,
            **common,
            reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)),
            live_parameters=int(zero.get("stage3_max_live_parameters", 1e9)),
        )
    raise ConfigError(
        [
            f"`trainer.strategy={engine}` cannot be planned; use trainer=gpu, ddp, fsdp2,"
            " deepspeed_zero2 or deepspeed_zero3."
        ]
    )


def texts_of(
    config: DictConfig, machine: Machine, rehearsal: "Rehearsal"
) -> tuple[dict[str, int], str]:
    """Return the text tokens of average and of longest samples, and the origin of the numbers."""
    longest, limit = longest_text(config, rehearsal.image_rows)
    average, origin = text_rows(config, machine, longest)
    words = f"{average} text tokens of a sample ({origin}), {longest} at most ({limit})"
    return {"average samples": average, "longest samples": longest}, words


def longest_text(config: DictConfig, image_rows: float) -> tuple[int, str]:
    """Return the maximum number of text tokens in a sample, and the setting that limits it.

    An image counts as one token of `data.max_length`, and as its expected rows in
    `data.rows_per_batch`.

    Raises:
        ConfigError: If an image alone exceeds `data.rows_per_batch`.
    """
    longest, budget = int(config.data.max_length) - 1, config.data.get("rows_per_batch")
    if budget is None or budget >= longest + math.ceil(image_rows):
        return longest, "data.max_length"
    if budget <= math.ceil(image_rows):
        raise ConfigError(
            [
                f"`data.rows_per_batch={budget}` is too small: an image alone is expected to have"
                f" {math.ceil(image_rows)} rows; raise it."
            ]
        )
    return budget - math.ceil(image_rows), "data.rows_per_batch"


def text_rows(config: DictConfig, machine: Machine, longest: int) -> tuple[int, str]:
    """Return the mean number of text tokens in a sample, and the origin of the number."""
    if machine.text_rows is not None:
        return min(machine.text_rows, longest), "plan.text_rows"
    name = Path(config.data.get("train_file", "")).name
    if name in KNOWN_FILES:
        return min(KNOWN_FILES[name][1], longest), f"assumed of {name}"
    return longest, "the most; set plan.text_rows"


def epoch_samples(config: DictConfig, machine: Machine) -> tuple[int | None, str]:
    """Return the samples of an epoch (None if `trainer.max_steps` is set) and their origin.

    Raises:
        ConfigError: If the number is unknown.
    """
    from dpn.config import build
    from dpn.data.rows import FileRows

    if machine.samples is not None:
        return machine.samples, f"plan.samples={machine.samples}"
    if config.trainer.max_steps > 0:
        return None, f"trainer.max_steps={config.trainer.max_steps}"
    split = build.data_module(config.data).source.split("train")
    assert split is not None
    if split.file.is_file():
        count = len(FileRows(split))
        return count, f"{count} samples in {split.file.name}"
    if split.file.name in KNOWN_FILES:
        count = len(split.numbers(KNOWN_FILES[split.file.name][0]))
        return count, f"{count} samples, as published, in {split.file.name}"
    raise ConfigError(
        [
            f"`data.train_file={split.file}` does not exist, so the number of samples is unknown;"
            " give plan.samples=N, or trainer.max_steps=N."
        ]
    )


def duration(
    config: DictConfig,
    machine: Machine,
    setup: "Setup",
    rehearsal: "Rehearsal",
    text: int,
    samples: int | None,
) -> Duration:
    """Estimate steps, FLOPs and hours of the whole run."""
    each = rehearsal.samples(setup, text)
    micro = each * setup.processes
    whole = config.data.global_batch or micro * config.trainer.accumulate_grad_batches
    if samples is None:
        steps = config.trainer.max_steps
    else:
        steps = math.ceil(samples / whole) * max(1, config.trainer.max_epochs)
    most, fewest = (rehearsal.step(setup, text, rows) for rows in ("most", "fewest"))
    routed: float = most.flops
    if (keep := rehearsal.module.model.router.keep) is not None and most.share > fewest.share:
        part = (keep - fewest.share) / (most.share - fewest.share)
        routed = fewest.flops + part * (most.flops - fewest.flops)
    share = config.stage.dense
    dense = share * rehearsal.step(setup, text, "all").flops if share else 0.0
    every = [(dense + (1 - share) * x) * whole / each for x in (routed, fewest.flops)]
    speed = setup.processes * machine.peak_tflops * 1e12 * machine.utilisation
    return Duration(steps, every[0], *(steps * flops / speed / 3600 for flops in every))


def warning(config: DictConfig) -> str | None:
    """Return a warning if a run may not fit on this machine's GPU; None if it seems to fit."""
    import torch

    from dpn.config import build
    from dpn.measure.fitting import verdict
    from dpn.measure.footprint import Rehearsal
    from dpn.metrics.memory import GIB

    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return None
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    try:
        rehearsal = Rehearsal(build.meta_module(config))
        texts, _ = texts_of(config, Machine(), rehearsal)
        sentence = verdict(rehearsal, setup_of(config), texts, memory, config.data.global_batch)
    except Exception as error:  # a failed estimate must not stop the run
        return f"The memory of this run could not be estimated: {error}"
    return None if sentence.startswith("It fits") else f"By estimate: {sentence}"


def print_result(memory: dict[str, "Memory"], figures: dict[str, Any]) -> None:
    """Print a table, then one line of JSON for programs."""
    from dpn.metrics.memory import GIB

    table = Table("GiB per GPU", *memory, title=f"{figures['engine']} on {figures['gpus']} GPUs")
    for field in ("held", "passing"):
        for name in dict.fromkeys(n for each in memory.values() for n in getattr(each, field)):
            sizes = [getattr(each, field).get(name, 0) for each in memory.values()]
            table.add_row(name, *(f"{size / GIB:.2f}" for size in sizes))
    updates = [f"{each.update / GIB:.2f}" for each in memory.values()]
    table.add_row("or, afterwards, the optimizer's step", *updates, end_section=True)
    table.add_row("at the highest moment", *(f"{each.total / GIB:.2f}" for each in memory.values()))
    console = terminal()
    console.print(table)
    hours = f"{figures['time/hours']:.2g}"
    if figures["time/hours_fewest_rows"] < figures["time/hours"]:
        hours += f" (with the fewest rows {figures['time/hours_fewest_rows']:.2g})"
    console.print(f"{figures['time/steps']} steps, {hours} hours. Assumed: {figures['assumed']}.")
    console.print(figures["verdict"])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
