"""Find the run that `stage=apply` takes its weights from.

`stage=apply` evaluates a method without training it, on the weights of a run without compression:
the finished run of router=none whose settings are the same otherwise.
"""

import re
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from dpn.common.errors import FileError
from dpn.config.build import data_module, input_files, model_config
from dpn.config.compose import compose
from dpn.model import meta_model
from dpn.runs import inputs
from dpn.runs.path import config_hash, run_path
from dpn.runs.request import Request
from dpn.runs.saved import read_status
from dpn.training.stage import trains

#: Sections in which the run without compression differs.
_REPLACED = ("router", "loss", "stage", "init")


def base_overrides(request: Request) -> list[str]:
    """Return the overrides of the run without compression that a method is applied to.

    The base run has the default projector. If the weights of the requested projector have other
    names or shapes, it has the requested one, without its keep.
    """
    shared = [o for o in request.overrides if _section(o) not in _REPLACED]
    default = [o for o in shared if _section(o) != "projector"]
    default_config = compose("train", default).config
    requested = [o for o in shared if not o.startswith("projector.keep=")]
    same = _weights(request.config, "projector") == _weights(default_config, "projector")
    return ["router=none", *(default if same else requested)]


def problems(request: Request) -> list[str]:
    """Return why a method cannot be applied; an empty list for stages that train."""
    config = request.config
    if trains(config.stage) or config.init.model is not None:
        return []
    if _weights(config, "router"):
        return [
            f"`router={config.router.name}` has weights of its own, which a run of router=none does"
            " not contain; train them with stage=finetune or stage=gates, or give a run that"
            " contains them: init.model=RUN."
        ]
    base = base_run(request)
    if base is None:
        command = " ".join(["python -m dpn.train", *base_overrides(request)])
        return [
            "`stage=apply` needs a finished run without compression, and there is none with these"
            f" settings; create it: {command}. Or give another run: init.model=RUN."
        ]
    other = inputs.changed(base, input_files(data_module(config.data)))
    return [
        f"{path} changed after {base}, which `stage=apply` takes its weights from, was trained on"
        f" it; put the file back, train again, or give the run by name: init.model={base}."
        for path in other
    ]


def base_run(request: Request) -> Path | None:
    """Return the folder of the run with `base_overrides`; None if there is no finished one."""
    base = compose("train", base_overrides(request))
    base.config.paths.run_dir = None
    path = run_path(base)
    for folder in [path, *sorted(path.parent.glob(f"*-{config_hash(base.config)}"))]:
        with suppress(FileError):
            if read_status(folder).get("status") == "finished":
                return folder
    return None


def _weights(config: DictConfig, part: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a part of the model, e.g. `projector`."""
    module = getattr(meta_model(model_config(config)), part)
    return {name: tuple(weight.shape) for name, weight in module.named_parameters()}


def _section(override: str) -> str:
    """Return the section that an override sets, e.g. `router` of `router.keep=0.5`."""
    return re.split(r"[=@./]", override.lstrip("+~"))[0]
