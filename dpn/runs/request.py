"""A request to a front door, and the error that lists everything wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dpn.common.errors import DPNError, Unreachable

Node = dict[str, Any]
#: Name, among benchmarks, of the questions held out from the training data.
HELD_OUT = "held_out"


class ConfigError(DPNError, ValueError):
    """A config is invalid; the message lists all problems, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        #: Whether the only problem is a share of visual work that the method cannot reach.
        self.unreachable = all(isinstance(p, Unreachable) for p in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"The configuration has {count}:", *(f"- {p}" for p in problems)]
        super().__init__("\n".join(lines))


def unresolved(error: OmegaConfBaseException) -> str:
    """Return the sentence for a value that OmegaConf cannot resolve, e.g. `${oc.env:UNSET}`."""
    reason = str(error).partition("\n")[0].rpartition("resolving interpolation: ")[2].strip('"')
    return f"`{error.full_key}` cannot be resolved: {reason.rstrip('.')}; change the reference."


@dataclass(frozen=True)
class Request:
    """A command line: a composed config and where it came from.

    Attributes:
        config: The composed config.
        overrides: Overrides of the command, without Hydra's own.
        experiment: Choice of the experiment group, or `main`.
        door: Name of the front door, e.g. `train` for `dpn.train`.
        in_sweep: Whether this is a job of a multirun.
        launched: Whether a launcher started a process for that job.
        model: Choice of the model group.
        sweep: Name of the multirun, which depends on its command alone; processes that a job
            starts have it too.
        job: Number of the job in the multirun.
        searching: Whether the sweeper of the multirun searches for the best values of the metrics
            that a run returns, instead of trying all combinations.
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
    searching: bool = False

    @property
    def command(self) -> list[str]:
        """Command line that runs this request by itself."""
        return ["python", "-m", f"dpn.{self.door}", *self.overrides]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder and not only a model."""
    return (folder / "config.yaml").is_file()
