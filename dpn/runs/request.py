"""What a front door is asked to do, and the one error that tells all that is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpn.common.text import one_line
from dpn.cost import Unreachable

Node = dict[str, Any]
#: Stands among benchmarks for the questions held out from the training data.
HELD_OUT = "held_out"


class ConfigError(ValueError):
    """All problems of a config, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        #: Whether nothing is wrong but that a method can not spend the share that is asked for.
        self.unreachable = all(isinstance(p, Unreachable) for p in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"The configuration has {count}:", *(f"- {p}" for p in problems)]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Request:
    """What a front door is asked to do.

    Attributes:
        config: the composed config.
        overrides: the command's overrides, without Hydra's own.
        experiment: choice of the experiment group, or `main`.
        door: name of the front door, `train` of `dpn.train`.
        in_sweep: whether it is a job of a multirun.
        launched: whether a launcher gave that job a process of its own.
        model: choice of the model group.
        sweep: name of the multirun, the same whenever its command is repeated; also for the
            processes that a job starts.
        job: number of the job in the multirun.
    """

    config: DictConfig
    overrides: tuple[str, ...] = ()
    experiment: str = "main"
    door: str = "train"
    in_sweep: bool = False
    launched: bool = False
    model: str = "tiny"
    sweep: str | None = None
    job: int | None = None

    @property
    def command(self) -> list[str]:
        """What to type for it by itself."""
        return ["python", "-m", f"dpn.{self.door}", *self.overrides]


def resolve(request: Request) -> Node:
    """Plain values of the whole config; the run's folder, not known yet, gets a stand-in.

    Raises:
        ConfigError: where a value is missing, or refers to one that is not there.
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
        raise ConfigError([one_line(str(error))]) from None
    return config


def refuse(problems: Sequence[str]) -> None:
    """Raise one error with all problems, if there are any."""
    if problems:
        raise ConfigError(problems)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, and no mere model."""
    return (folder / "config.yaml").is_file()
