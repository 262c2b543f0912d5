"""What `stage=apply` evaluates a method on: the weights of the run without compression that has the
same settings otherwise.
"""

import re
from pathlib import Path

from omegaconf import DictConfig

from dpn.common.files import read_json
from dpn.config.build import model_config
from dpn.config.compose import compose
from dpn.model import meta_model
from dpn.runs.path import config_hash, run_path
from dpn.runs.request import Request
from dpn.training.stage import trains

#: What a run without compression has its own of.
OWN = ("router", "loss", "stage", "init")


def base_overrides(request: Request) -> list[str]:
    """The overrides of the run without compression that a method is applied to.

    Its projector is the request's own, without a keep, where that has weights that the usual one
    has not.
    """
    others = [o for o in request.overrides if _section(o) not in OWN]
    usual = [o for o in others if _section(o) != "projector"]
    usual_config = compose("train", usual).config
    others = [o for o in others if not o.startswith("projector.keep=")]
    same = _weights(request.config, "projector") == _weights(usual_config, "projector")
    return ["router=none", *(usual if same else others)]


def problems(request: Request) -> list[str]:
    """Why a method can not be applied; nothing for other stages."""
    config = request.config
    if trains(config.stage) or config.init.model is not None:
        return []
    if _weights(config, "router"):
        return [
            f"`router={config.router.name}` has weights of its own, and a run of router=none has"
            " none for it; train them with stage=finetune or stage=gates, or give a run that has"
            " them: init.model=RUN."
        ]
    if base_run(request) is None:
        command = " ".join(["python -m dpn.train", *base_overrides(request)])
        return [
            "`stage=apply` needs the run that the method is applied to, and there is no finished"
            f" one; make it: {command}. Or give another: init.model=RUN."
        ]
    return []


def base_run(request: Request) -> Path | None:
    """The folder of that run; None if there is no finished one."""
    base = compose("train", base_overrides(request))
    base.config.paths.run_dir = None
    path = run_path(base)
    for folder in [path, *sorted(path.parent.glob(f"*-{config_hash(base.config)}"))]:
        if (read_json(folder / "status.json") or {}).get("status") == "finished":
            return folder
    return None


def _weights(config: DictConfig, part: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a part's weights."""
    module = getattr(meta_model(model_config(config)), part)
    return {name: tuple(weight.shape) for name, weight in module.named_parameters()}


def _section(override: str) -> str:
    return re.split(r"[=@./]", override.lstrip("+~"))[0]
