"""LLaVA's own files: a JSON array of conversations and a folder of images."""

from dataclasses import dataclass
from pathlib import Path

from dpn.data.base import Source, Split, SplitName
from dpn.data.conversation import TEMPLATES


@dataclass(frozen=True, kw_only=True)
class LlavaJson(Source):
    """LCS-558K, the 665K mix, and whatever has their format.

    Args:
        train_file: JSON array of rows with `id`, `image` (a path, a list of paths or absent) and
            `conversations`; the optional keys `family` and `difficulty` are what metrics group by.
        image_root: folder that image paths are relative to.
        val_file: rows that are held out.
        template: conversation template of training and validation (`plain`: captions); null for the
            processor's.
        train_rows: how many rows to use from the start of the file; null for all.
        val_rows: the same for validation.
    """

    train_file: str
    image_root: str
    val_file: str | None = None
    template: str | None = None
    train_rows: int | None = None
    val_rows: int | None = None

    def check(self) -> list[str]:
        """See `Source.check`."""
        problems = super().check()
        for name in ("train_file", "val_file"):
            value = getattr(self, name)
            if value is not None and not Path(value).is_file():
                problems.append(f"`data.{name}={value}` does not exist; give the JSON file's path.")
        if not Path(self.image_root).is_dir():
            problems.append(f"`data.image_root={self.image_root}` is no folder; give the images'.")
        if self.template is not None and self.template not in TEMPLATES:
            known = ", ".join(TEMPLATES)
            problems.append(f"`data.template={self.template}` is unknown; there is {known}.")
        return problems

    def split(self, name: SplitName) -> Split | None:
        """See `Source.split`."""
        file, rows = {
            "train": (self.train_file, self.train_rows),
            "val": (self.val_file, self.val_rows),
        }[name]
        if file is None:
            return None
        return Split(Path(file), Path(self.image_root), self.template, rows)
