"""The built-in data set: mosaics of handwritten digits, with questions at three levels of detail.

`coarse` questions ask for tints, which survive any pooling, `medium` ones for the number of digits
and `fine` ones for the digits themselves. Training and validation use disjoint digit images. The
data set is written once, as PNG files and JSON in LLaVA's format.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from PIL import Image

from dpn.common.ranges import Seed
from dpn.data.sources._scenes import (
    FAMILIES,
    NUMBERS,
    PLACES,
    Exchange,
    draw,
    paint,
    read,
    split_digits,
)
from dpn.data.sources.base import Source, Split, SplitName

FORMAT = 5  # raise it when the same arguments give different files


@dataclass(frozen=True, kw_only=True)
class Mosaic(Source):
    """Mosaics and conversations about them; all turns of a conversation belong to one family.

    Args:
        root: Folder below which the data set is written.
        stage: Kind of text: `questions`, or `captions` with all digits of a mosaic and the template
            `plain`.
        train_images: Number of mosaics to train on, each with one conversation and one caption.
        val_images: Number of mosaics of each family to validate on.
        mix: Relative number of training mosaics of each family.
        side: Number of cells along a mosaic's side.
        counts: Possible numbers of digits in a quadrant with scattered digits (`medium`).
        turns: Number of questions about quadrants in a conversation, in reading order.
        tint: Brightness of the tints, from 0 (black) to 1.
        data_seed: Seed of the mosaics.
        metric: See `Source`; answers are rows of digits, or words.
    """

    root: str
    stage: Literal["captions", "questions"] = "questions"
    train_images: int = 9000
    val_images: int = 100
    mix: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 1))
    side: int = 8
    counts: list[int] = field(default_factory=lambda: [2, 6, 10, 14])
    turns: int = 4
    tint: float = 0.7
    data_seed: Seed = 0
    metric: str = "digits"

    def check(self) -> list[str]:
        quadrant = (self.side // 2) ** 2
        problems = super().check() + self._outside(
            {
                "train_images": (1, 99_999),
                "val_images": (1, 99_999),
                "side": (2, 32),
                "turns": (1, len(PLACES)),
            }
        )
        most = min(quadrant, len(NUMBERS) - 1)
        if not self.counts or not all(0 <= count <= most for count in self.counts):
            problems.append(
                f"`data.counts={self.counts}` is not possible; list numbers from 0 to {most}."
            )
        if self.side % 2:
            problems.append(f"`data.side={self.side}` is not possible; it must be even.")
        if not 0 < self.tint <= 1:
            problems.append(f"`data.tint={self.tint}` must be above 0 and at most 1.")
        if unknown := sorted(set(self.mix) - set(FAMILIES)):
            problems.append(f"`data.mix` names {unknown[0]!r}; there is {', '.join(FAMILIES)}.")
        elif min(self.mix.values(), default=0) < 0 or not sum(self.mix.values()):
            problems.append(f"`data.mix={self.mix}` must hold positive whole numbers.")
        return problems

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings that the content of the files depends on."""
        own = set(Mosaic.__annotations__) - {"root", "stage", "metric"}
        return {"format": FORMAT} | {name: getattr(self, name) for name in sorted(own)}

    @property
    def folder(self) -> Path:
        """Folder of the files, which depends on the settings in `recipe`."""
        text = json.dumps(self.recipe, sort_keys=True)
        return Path(self.root) / f"mosaic-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def prepare(self) -> None:
        """Write the files unless a complete data set exists.

        A lock lets one process write while others wait. The folder is renamed when it is complete,
        and a damaged folder is written again.
        """
        if problems := self.check():
            raise ValueError(" ".join(problems))
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if is_complete(self.folder):
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            temporary = self.folder.with_suffix(".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            self._write(temporary)
            temporary.rename(self.folder)

    def _write(self, folder: Path) -> None:
        train, val = split_digits(self.data_seed)
        evenly = dict.fromkeys(FAMILIES, 1)
        for split, (name, pool, mix, count) in enumerate(
            [
                ("train", train, self.mix, self.train_images),
                ("val", val, evenly, self.val_images * len(FAMILIES)),
            ]
        ):
            (folder / name).mkdir()
            rows: dict[str, list[FileRow]] = {"questions": [], "captions": []}
            for number, family in enumerate(islice(endless(mix), count)):
                rng = np.random.default_rng([self.data_seed, split, number])
                counts = None if FAMILIES[family].full else self.counts
                scene = draw(rng, pool, self.side, counts)
                image = f"{name}/{number:05d}.png"
                paint(scene, self.tint).save(folder / image)
                turns = FAMILIES[family].ask(scene, self.turns, rng)
                rows["questions"].append(
                    row(f"{name}-{number}", image, turns)
                    | {"family": family, "difficulty": sum(turn.difficulty for turn in turns)}
                )
                caption = Exchange("Read the whole mosaic.", read(scene.images), 0)
                rows["captions"].append(row(f"{name}-{number}-caption", image, [caption]))
            for stage, own in rows.items():
                (folder / f"{name}-{stage}.json").write_text(json.dumps(own, indent=1))
        manifest = {"recipe": self.recipe, "digest": digest(folder)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))

    def split(self, name: SplitName) -> Split:
        return self._split(name, self.stage)

    def corpus(self) -> list[Split]:
        # Both stages share one tokenizer.
        return [self._split("train", "captions"), self._split("train", "questions")]

    def _split(self, name: SplitName, stage: str) -> Split:
        file = self.folder / f"{name}-{stage}.json"
        return Split(file, self.folder, "plain" if stage == "captions" else None)


def example_image(size: tuple[int, int] = (448, 336)) -> Image.Image:
    """Return a mosaic with a digit in every cell, always the same.

    Args:
        size: Width and height in pixels.
    """
    scene = draw(np.random.default_rng(0), split_digits(0)[1], 8, None)
    return paint(scene, 0.7).resize(size, Image.Resampling.BICUBIC)


FileRow = dict[str, Any]


def endless(mix: Mapping[str, int]) -> Iterator[str]:
    """Yield families in turn forever, each as often as the mix says."""
    return cycle([family for family, times in mix.items() for _ in range(times)])


def row(name: str, image: str, turns: Sequence[Exchange]) -> FileRow:
    """Build a row in LLaVA's format."""
    messages = []
    for number, turn in enumerate(turns):
        mark = "" if number else "<image>\n"
        messages.append({"from": "human", "value": mark + turn.question})
        messages.append({"from": "gpt", "value": turn.answer})
    return {"id": name, "image": image, "conversations": messages}


# Detection of incomplete data sets ----------------------------------------------------------------

MANIFEST = "manifest.json"


def digest(folder: Path) -> str:
    """Hash the names and bytes of all files except the manifest and the indices of rows."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST and not path.name.startswith("."):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def is_complete(folder: Path) -> bool:
    """Return whether all files are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["digest"] == digest(folder)
    except (OSError, ValueError, KeyError):
        return False
