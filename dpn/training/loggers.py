"""Loggers that show more than numbers: routes as histograms, and answers with their pictures."""

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

from dpn.common.files import write_text
from dpn.common.text import one_line
from dpn.runs.folder import RunError
from dpn.training._lightning import wandb_arguments, wandb_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Title:
    """What a board calls a run.

    Attributes:
        name: of the run.
        identity: of its settings, see `RunFolder`.
        group: what it belongs to, if anything.
    """

    name: str
    identity: str
    group: str | None = None


@dataclass(frozen=True)
class Example:
    """A question that was answered.

    Attributes:
        picture: `[H, W, 3]` in 0..255, the image and what was left of it.
        fields: everything in words and numbers, by title.
    """

    picture: np.ndarray
    fields: Mapping[str, str | float]


class Board(Logger, ABC):
    """A logger that is opened before training and closed when the run is over, however it ends."""

    def open(self, title: Title) -> None:
        """Begin, or go on with, what this board has of a run."""

    @abstractmethod
    def log_histogram(self, name: str, counts: np.ndarray, step: int) -> None:
        """Show how often each of E options was taken, `[E]`."""

    @abstractmethod
    def log_results(
        self, metrics: Mapping[str, float], table: str, examples: Sequence[Example], step: int
    ) -> None:
        """Show what came out, and a table of examples."""

    def close(self, failed: bool) -> None:
        """End."""


class TensorBoard(TensorBoardLogger, Board):
    """Event files; results stand beside the settings in its tab HPARAMS."""

    @rank_zero_only
    def log_histogram(self, name: str, counts: np.ndarray, step: int) -> None:
        """See `Board`."""
        options = np.arange(len(counts))
        values, edges = np.repeat(options, counts), _edges(counts)
        self.experiment.add_histogram(name, values, step, bins=edges)

    @rank_zero_only
    def log_results(
        self, metrics: Mapping[str, float], table: str, examples: Sequence[Example], step: int
    ) -> None:
        """See `Board`."""
        self.log_hyperparams(self.hparams, dict(metrics), step)
        for number, example in enumerate(examples):
            name, fields = f"{table}/{number}", example.fields.items()
            self.experiment.add_image(name, example.picture, step, dataformats="HWC")
            text = "\n".join(f"- {title}: {value}" for title, value in fields)
            self.experiment.add_text(name, text, step)

    @rank_zero_only
    def close(self, failed: bool) -> None:
        """See `Board`."""
        self.finalize("failed" if failed else "success")


class WandB(WandbLogger, Board):
    """Weights & Biases: online where it finds a key or login, offline elsewhere.

    A run keeps its id when it is resumed, so its parts become one. Environment variables of
    Weights & Biases (`WANDB_MODE`, `WANDB_PROJECT`, ...) count where an argument is None, others as
    ever.

    Args:
        save_dir: the run's folder.
        project: None: `dpn`.
        name: of the run; None: model/router/keep/seed.
        group: None: the sweep that the run is part of.
        mode: None: see above.
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
        wandb_arguments(self).pop("anonymous", None)  # wandb warns about it, whatever it is

    @rank_zero_only
    def open(self, title: Title) -> None:
        """Begin a run, or go on with the one that the folder knows.

        Raises:
            RunError: if it can not begin.
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
        """The folder's id; made the first time, so that the same settings elsewhere get another."""
        path = Path(str(self.save_dir)) / "wandb" / "run_id"
        if not path.exists():
            write_text(path, f"{identity}-{secrets.token_hex(3)}\n")
        return path.read_text(encoding="utf-8").strip()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """See the base class. Steps are named, so parts of a resumed run have their own."""
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    @rank_zero_only
    def log_histogram(self, name: str, counts: np.ndarray, step: int) -> None:
        """See `Board`."""
        import wandb

        self.log_metrics({name: wandb.Histogram(np_histogram=(counts, _edges(counts)))}, step)

    @rank_zero_only
    def log_results(
        self, metrics: Mapping[str, float], table: str, examples: Sequence[Example], step: int
    ) -> None:
        """See `Board`; metrics become the run's summary, in place of their last values."""
        import wandb

        if examples:
            pictures = [wandb.Image(example.picture) for example in examples]
            shown = wandb.Table(columns=["picture", *examples[0].fields])
            for picture, example in zip(pictures, examples, strict=True):
                shown.add_data(picture, *example.fields.values())
            # A table's pictures wait outside of the run's folder while it is offline.
            self.log_metrics({table: shown, f"{table}/pictures": pictures}, step)
        self.experiment.summary.update(dict(metrics))

    @rank_zero_only
    def close(self, failed: bool) -> None:
        """See `Board`."""
        if (run := wandb_run(self)) is not None:
            run.finish(exit_code=int(failed))


def has_key() -> bool:
    """Whether Weights & Biases would find a key or login without asking."""
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    given = map(os.environ.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    # `wandb login` writes to netrc; the public server has had two names.
    logins = map(get_netrc_auth, (settings.base_url, "https://api.wandb.ai"))
    return bool(settings.api_key) or any(given) or any(logins)


def _edges(counts: np.ndarray) -> np.ndarray:
    """`[E + 1]` edges of bins around the numbers of E options."""
    return np.arange(len(counts) + 1) - 0.5
