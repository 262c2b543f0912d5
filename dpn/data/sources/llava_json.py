"""Files in LLaVA's format: a JSON array of conversations and a folder of images."""

from dataclasses import dataclass
from pathlib import Path

from dpn.data.conversation import TEMPLATES
from dpn.data.image_rules import OWN, ImageRules
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
        val_rows: Number of rows to validate on, from the start of `val_file` or of the held-out
            rows; null: all.
        holdout: Number of random rows of `train_file` to validate on and leave out of training, if
            there is no `val_file`; below 1 a share of all rows; null: none.
        holdout_seed: Seed of this selection; it must be the same in runs that are compared.
        image_max_pixels: Largest number of pixels of an image.
        image_max_ratio: Largest ratio of an image's longer to its shorter side.
        image_background: Colour behind transparent pixels, a name or `#rrggbb`.
        image_released: Whether pixels are those of LLaVA's released code, see `ImageRules`.
    """

    train_file: str
    image_root: str
    val_file: str | None = None
    template: str | None = None
    train_rows: int | None = None
    val_rows: int | None = None
    holdout: float | None = None
    holdout_seed: int = 0
    image_max_pixels: int = OWN.max_pixels
    image_max_ratio: float = OWN.max_ratio
    image_background: str = OWN.background
    image_released: bool = OWN.released

    @property
    def image_rules(self) -> ImageRules:
        """How image files are read."""
        return ImageRules(
            self.image_max_pixels, self.image_max_ratio, self.image_background, self.image_released
        )

    def check(self) -> list[str]:
        limits: dict[str, tuple[int, int | None]] = {"holdout_seed": (0, None)}
        limits |= {n: (1, None) for n in ("train_rows", "val_rows") if getattr(self, n) is not None}
        problems = super().check() + self._outside(limits)
        problems += self.image_rules.check()
        for name in ("train_file", "val_file"):
            value = getattr(self, name)
            if value is not None and not Path(value).is_file():
                wrong = "is not a file" if Path(value).exists() else "does not exist"
                problems.append(f"`data.{name}={value}` {wrong}; give the JSON file's path.")
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
        if self.val_file is not None:
            return [
                "`data.val_file` and `data.holdout` both determine what to validate on; set one"
                " to null."
            ]
        return []

    def split(self, name: SplitName) -> Split | None:
        file, rows, draw = self.train_file, self.train_rows, None
        if self.holdout is not None:
            most = self.val_rows if name == "val" else None
            draw = Draw(self.holdout, self.holdout_seed, drawn=name == "val", most=most)
        elif name == "val":
            if self.val_file is None:
                return None
            file, rows = self.val_file, self.val_rows
        return Split(Path(file), Path(self.image_root), self.template, rows, draw, self.image_rules)
