"""Files in LLaVA's format: a JSON array of conversations and a folder of images."""

from dataclasses import dataclass
from pathlib import Path

from dpn.data.conversation import TEMPLATES
from dpn.data.sources.base import Draw, Source, Split, SplitName


@dataclass(frozen=True, kw_only=True)
class LlavaJson(Source):
    """LCS-558K, the 665K mix, and other data in their format.

    Args:
        train_file: JSON array of rows with `id`, `image` (a path, a list of paths or absent) and
            `conversations`; metrics are grouped by the optional keys `family` and `difficulty`.
        image_root: Folder that image paths are relative to.
        val_file: JSON array of the rows to validate on.
        template: Conversation template of training and validation (`plain`: captions); null: the
            processor's.
        train_rows: Number of rows to use from the start of `train_file`; null: all.
        val_rows: Number of rows to use from the start of `val_file`; null: all.
        holdout: Number of random rows of `train_file` to validate on and leave out of training, if
            there is no `val_file`; below 1 a share of all rows; null: none.
        holdout_seed: Seed of this selection; it must be the same in runs that are compared.
    """

    train_file: str
    image_root: str
    val_file: str | None = None
    template: str | None = None
    train_rows: int | None = None
    val_rows: int | None = None
    holdout: float | None = None
    holdout_seed: int = 0

    def check(self) -> list[str]:
        problems = super().check() + self._outside({"holdout_seed": (0, None)})
        for name in ("train_file", "val_file"):
            value = getattr(self, name)
            if value is not None and not Path(value).is_file():
                problems.append(f"`data.{name}={value}` does not exist; give the JSON file's path.")
        if not Path(self.image_root).is_dir():
            problems.append(
                f"`data.image_root={self.image_root}` is not a folder; give the images'."
            )
        if self.template is not None and self.template not in TEMPLATES:
            known = ", ".join(TEMPLATES)
            problems.append(f"`data.template={self.template}` is unknown; there is {known}.")
        if self.holdout is not None:
            problems += self._check_holdout(self.holdout)
        return problems

    def _check_holdout(self, amount: float) -> list[str]:
        if amount <= 0 or (amount >= 1 and amount != int(amount)):
            return [
                f"`data.holdout={amount}` is not possible; give a whole number of rows, or a share"
                " below 1."
            ]
        return [
            f"`data.{name}` and `data.holdout` both determine what to validate on; set one to null."
            for name in ("val_file", "val_rows")
            if getattr(self, name) is not None
        ]

    def split(self, name: SplitName) -> Split | None:
        file, rows, draw = self.train_file, self.train_rows, None
        if self.holdout is not None:
            draw = Draw(self.holdout, self.holdout_seed, drawn=name == "val")
        elif name == "val":
            if self.val_file is None:
                return None
            file, rows = self.val_file, self.val_rows
        return Split(Path(file), Path(self.image_root), self.template, rows, draw)
