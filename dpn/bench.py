"""Compare FLOPs, speed and memory of a model with no compression and with Hugging Face.

    python -m dpn.bench router=static
    python -m dpn.bench router=none projector=visionzip projector.keep=0.5
    python -m dpn.bench -m router=none,static,random batch_size=[1,8] new_tokens=[1,64]
    python -m dpn.bench model=llava_1_5_7b dtype=bfloat16 route=[[2,2],[1,1],[1,1]]  # dpe on a GPU
    python -m dpn.bench model=llava_1_5_7b pairs=0                   # only costs, on any machine
    python -m dpn.bench router=static profile=true                   # also where the time goes

Weights, images and text are random. All contenders share the weights and run in turn in one
process; the ratios of their times are reported, and times themselves only on a GPU without other
jobs. The ratio of times divided by the ratio of FLOPs is 1 if the saved FLOPs save as much time.

`measure` only needs torch and transformers:

    from dpn import DPNConfig
    from dpn.bench import Load, measure
    # The default text model of Hugging Face is a Llama of 7B.
    config = DPNConfig(vision_config={"name": "clip"}, router_config={"name": "static"})
    measure(config, Load(batch_size=[1, 8], dtype="bfloat16"))
"""

# Functions import what needs torch, so that `--help` and a misspelt name are answered before.

import re
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from dpn.common import early_stop
from dpn.measure.load import Load

if TYPE_CHECKING:
    from dpn.measure.case import Figures
    from dpn.model import DPNConfig
    from dpn.runs.request import Request

#: Settings for how to measure, as opposed to which model.
HOW = (
    *("batch_size", "text_columns", "new_tokens", "pairs", "train", "profile", "seed", "folder"),
    "paths",
)


def main() -> None:
    """Command line of `python -m dpn.bench`."""
    from dpn.cli.door import front_door

    front_door("bench")(_run)()


def _run(request: "Request") -> None:
    """Measure a model, print the results and add them to the folder."""
    from dpn.measure.report import publish

    publish(bench(request), Path(request.config.folder))


def bench(request: "Request") -> list["Figures"]:
    """Measure the model of a config, see `measure`; `model` in each row lists its overrides.

    Raises:
        ConfigError: If the config is invalid; lists every problem.
    """
    from dpn.config import build, preflight
    from dpn.measure.dry_run import NeedsData, fixed
    from dpn.model import meta_model
    from dpn.runs.request import ConfigError

    early_stop.imported()
    preflight.check_bench(request)
    config = build.model_config(request.config)
    values = build.plain(request.config)
    load = Load(**{name: values[name] for name in Load.__dataclass_fields__})
    try:
        fixed(meta_model(config).router, load.route)
    except ValueError as error:
        raise ConfigError([f"`route={load.route}` is not possible. {error}"]) from None
    try:
        rows = measure(config, load)
    except NeedsData as error:
        raise ConfigError([f"`pairs=0` is not possible here. {error}"]) from None
    chosen = " ".join(o for o in request.overrides if re.split("[.=]", o)[0] not in HOW)
    return [{"model": chosen, **row} for row in rows]


def measure(config: "DPNConfig", load: Load | None = None) -> list["Figures"]:
    """Measure a model.

    Args:
        config: Config of the model.
        load: Batch sizes, lengths and options to measure with.

    Returns:
        One flat row for each batch size, prompt length and number of new tokens, with the settings
        of `load` and the results described in `dpn.measure.case`. Training steps and profiles do
        not depend on new tokens and are only in the first row of their batch. With `pairs=0` and
        `route=own`, one row each for the most and the fewest visual rows that the router can keep.
    """
    import torch

    from dpn.measure.case import Case, on_paper
    from dpn.measure.contenders import contenders
    from dpn.measure.dry_run import make_batch

    load = load or Load()
    batches = list(product(_several(load.batch_size), _several(load.text_columns)))
    if not load.pairs:
        return [row for case in batches for row in on_paper(config, load, *case)]
    device = load.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    runners = contenders(config, load, device)
    settings = asdict(load) | {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    rows = []
    for size, text in batches:
        batch = make_batch(runners["none"].model, size, text, load.seed)
        case = Case(runners, {name: x.to(device) for name, x in batch.items()}, load)
        found = {new: case.answers(new) for new in _several(load.new_tokens)}
        first = next(iter(found.values()))
        if load.train:
            first |= case.training()
        if load.profile:
            first |= case.profiles()
        for new, row in found.items():
            own = {"batch_size": size, "text_columns": text, "new_tokens": new}
            rows.append(settings | own | row)
    return rows


def _several(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


if __name__ == "__main__":
    main()
