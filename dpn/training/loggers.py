"""Loggers that also show routes as histograms and answers with their pictures."""

import logging
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dpn.common.files import read_text, write_text
from dpn.common.text import one_line
from dpn.runs.folder import RunError
from dpn.training._lightning import wandb_arguments, wandb_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Title:
    """Name of a run on a board.

    Attributes:
        name: Name of the run.
        identity: Hash of its settings, see `RunFolder`.
        group: Sweep that the run belongs to, if any.
    """

    name: str
    identity: str
    group: str | None = None


@dataclass(frozen=True)
class Example:
    """An answered question.

    Attributes:
        picture: `[H, W, 3]` in 0..255, the image and what was left of it.
        fields: Question, answer, score and so on, by column title.
    """

    picture: np.ndarray
    fields: Mapping[str, str | float]


class Board(Logger, ABC):
    """A logger that is opened before training and closed when the run ends, however it ends."""

    def open(self, title: Title) -> None:
        """Begin the run on this board, or resume it."""

    @abstractmethod
    def log_histogram(self, name: str, counts: np.ndarray, step: int) -> None:
        """Show how often each of E options was chosen, `[E]`."""

    @abstractmethod
    def log_results(
        self, metrics: Mapping[str, float], table: str, examples: Sequence[Example], step: int
    ) -> None:
        """Show the final metrics and a table of examples."""

    def close(self, failed: bool) -> None:
        """End the run on this board."""


class TensorBoard(TensorBoardLogger, Board):
    """TensorBoard event files; the tab HPARAMS shows settings and results."""

    @rank_zero_only
    def log_histogram(self, name: str, counts: np.ndarray, step: int) -> None:
        options = np.arange(len(counts))
        values, edges = np.repeat(options, counts), _edges(counts)
        self.experiment.add_histogram(name, values, step, bins=edges)

    @rank_zero_only
    def log_results(
        self, metrics: Mapping[str, float], table: str, examples: Sequence[Example], step: int
    ) -> None:
        self.log_hyperparams(self.hparams, dict(metrics), step)
        for number, example in enumerate(examples):
            name, fields = f"{table}/{number}", example.fields.items()
            self.experiment.add_image(name, example.picture, step, dataformats="HWC")
            text = "\n".join(f"- {title}: {value}" for title, value in fields)
            self.experiment.add_text(name, text, step)

    @rank_zero_only
    def close(self, failed: bool) -> None:
        self.finalize("failed" if failed else "success")


class WandB(WandbLogger, Board):
    """Weights & Biases: online if there is a key or login, offline otherwise.

    A resumed run keeps its id and so stays one run. Where an argument is None, the environment
    variable of Weights & Biases (`WANDB_PROJECT`, `WANDB_MODE`, ...) counts, and then the default
    below.

    Args:
        save_dir: Folder of the run.
        project: Project; default: `dpn`.
        name: Name of the run; default: model/router/keep/seed.
        group: Group of the run; default: its sweep, if it is part of one.
        mode: Whether to upload; default: as above.
    """

    def __init__(
        self,
        save_dir: str,
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
    ) -> None:
        project = project or os.environ.get("WANDB_PROJECT", "dpn")
        super().__init__(name=name, save_dir=save_dir, project=project, group=group, mode=mode)
        wandb_arguments(self).pop("anonymous", None)  # wandb warns about it, whatever its value is

    @rank_zero_only
    def open(self, title: Title) -> None:
        """Begin a run, or resume the one whose id is in the folder.

        Raises:
            RunError: If Weights & Biases does not start.
        """
        import wandb

        usual = {
            "name": ("WANDB_NAME", title.name),
            "group": ("WANDB_RUN_GROUP", title.group),
            "id": ("WANDB_RUN_ID", self._kept_id(title.identity)),
            "mode": ("WANDB_MODE", "online" if has_key() else "offline"),
        }
        arguments = wandb_arguments(self)
        for key, (variable, value) in usual.items():
            if arguments.get(key) is None:
                arguments[key] = os.environ.get(variable, value)
        arguments["settings"] = {
            "silent": os.environ.get("WANDB_SILENT", "true"),
            "console": os.environ.get("WANDB_CONSOLE", "off"),
        }
        try:
            run = self.experiment
        except wandb.Error as error:
            why = one_line(str(error)).rstrip(".")
            raise RunError(
                f"Weights & Biases did not start: {why}. With WANDB_MODE=offline the run is written"
                " to its folder, to be uploaded later."
            ) from error
        if run.offline:
            folder = Path(run.settings.wandb_dir)
            log.info("Weights & Biases is offline; to upload this run: wandb sync %s", folder)
        elif run.url:
            log.info("Weights & Biases: %s", run.url)

    def _kept_id(self, identity: str) -> str:
        """The id in the run folder, made at the first call; other folders get other ids."""
        path = Path(str(self.save_dir)) / "wandb" / "run_id"
        if not path.exists():
            write_text(path, f"{identity}-{secrets.token_hex(3)}\n")
        return read_text(path).strip()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics with their step, which a resumed run continues."""
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    @rank_zero_only
    def log_histogram(self, name: str, counts: np.ndarray, step: int) -> None:
        import wandb

        self.log_metrics({name: wandb.Histogram(np_histogram=(counts, _edges(counts)))}, step)

    @rank_zero_only
    def log_results(
        self, metrics: Mapping[str, float], table: str, examples: Sequence[Example], step: int
    ) -> None:
        import wandb

        if examples:
            pictures = [wandb.Image(example.picture) for example in examples]
            shown = wandb.Table(columns=["picture", *examples[0].fields])
            for picture, example in zip(pictures, examples, strict=True):
                shown.add_data(picture, *example.fields.values())
            # Offline, the pictures of a table are stored outside of the run's folder.
            self.log_metrics({table: shown, f"{table}/pictures": pictures}, step)
        self.experiment.summary.update(dict(metrics))  # in place of their last logged values

    @rank_zero_only
    def close(self, failed: bool) -> None:
        if (run := wandb_run(self)) is not None:
            run.finish(exit_code=int(failed))


def has_key() -> bool:
    """Whether Weights & Biases finds a key or login without asking for one."""
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    given = map(os.environ.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    # `wandb login` writes to netrc; the public server has had two names.
    logins = map(get_netrc_auth, (settings.base_url, "https://api.wandb.ai"))
    return bool(settings.api_key) or any(given) or any(logins)


def _edges(counts: np.ndarray) -> np.ndarray:
    """`[E + 1]` edges of the histogram bins of E options."""
    return np.arange(len(counts) + 1) - 0.5
