"""The embedded data set: mosaics of handwritten digits, with questions at three levels of detail.

A mosaic is a grid of small cells, each empty or with a handwritten digit (scikit-learn's
`load_digits`; training and validation use disjoint digit images), under a tint for each quadrant.
`coarse` questions ask for tints and survive any pooling, `medium` ones for the number of digits,
`fine` ones for the digits themselves. It is written once, as PNG files and JSON in LLaVA's format.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image

from dpn.data.base import Source, Split, SplitName

FORMAT = 4  # raise it when the same arguments give different files
DIGIT = 8  # pixels of a digit's side in load_digits
INKS = 16  # its grey levels
VAL_DIGITS = 397  # digit images that only validation sees; training has the other 1,400
PLACES = ("top left", "top right", "bottom left", "bottom right")
TINTS = {
    "red": (1, 0.25, 0.25),
    "green": (0.25, 1, 0.25),
    "blue": (0.35, 0.35, 1),
    "yellow": (1, 1, 0.2),
}
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
NUMBERS = f"{_NUMBERS} fifteen sixteen".split()


@dataclass(frozen=True)
class Scene:
    """What a mosaic shows.

    Attributes:
        tints: name of each quadrant's tint, in the order of `PLACES`.
        images: `[side, side]` number of the digit image in each cell, -1 for none.
    """

    tints: tuple[str, ...]
    images: np.ndarray

    def quadrant(self, number: int) -> np.ndarray:
        """`[side / 2, side / 2]` cells of a quadrant."""
        half = len(self.images) // 2
        top, left = (half * place for place in divmod(number, 2))
        return self.images[top : top + half, left : left + half]


class Exchange(NamedTuple):
    """A question, its answer, and how many digits one has to look at."""

    question: str
    answer: str
    difficulty: int


@dataclass(frozen=True)
class Family:
    """Questions of one level of detail.

    Attributes:
        full: whether every cell has a digit, or only a few scattered ones.
        ask: the turns that a scene allows, in the order of asking. No answer tells another one.
    """

    full: bool
    ask: Callable[[Scene, "Mosaic", np.random.Generator], list[Exchange]]


def ask_tints(scene: Scene, mosaic: "Mosaic", rng: np.random.Generator) -> list[Exchange]:
    """The first quadrants in reading order."""
    return [
        Exchange(f"What colour is the {place} quadrant?", tint, 0)
        for place, tint in islice(zip(PLACES, scene.tints, strict=True), mosaic.turns)
    ]


def ask_numbers(scene: Scene, mosaic: "Mosaic", rng: np.random.Generator) -> list[Exchange]:
    """The first quadrants in reading order."""
    turns = []
    for number, place in enumerate(PLACES[: mosaic.turns]):
        count = int((scene.quadrant(number) >= 0).sum())
        question = f"How many digits are in the {place} quadrant?"
        turns.append(Exchange(question, NUMBERS[count], count))
    return turns


def ask_digits(scene: Scene, mosaic: "Mosaic", rng: np.random.Generator) -> list[Exchange]:
    """Some rows from the top, up to all, and in half of the conversations the rest after them."""
    height = int(rng.integers(2, mosaic.side + 1))
    asked = [(f"Read the first {height} rows.", scene.images[:height])]
    if height < mosaic.side and rng.integers(2):
        asked.append(("Read the rest.", scene.images[height:]))
    return [Exchange(question, read(rows), rows.size) for question, rows in asked]


FAMILIES = {
    "coarse": Family(True, ask_tints),
    "medium": Family(False, ask_numbers),
    "fine": Family(True, ask_digits),
}


@dataclass(frozen=True, kw_only=True)
class Mosaic(Source):
    """Mosaics and conversations about them, all turns of one family.

    Args:
        root: folder under which the data set is written.
        stage: `questions`, or `captions`: the whole mosaic is read out, with template `plain`.
        train_images: mosaics to train on, each with one conversation and one caption.
        val_images: mosaics of each family that are held out.
        mix: relative number of training mosaics of each family.
        side: cells of a mosaic's side.
        counts: how many digits a quadrant can have where they are scattered (`medium`).
        turns: questions about quadrants in a conversation, in reading order.
        tint: brightness of the tints, from black 0 to 1.
        data_seed: of the mosaics.
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
    data_seed: int = 0

    def check(self) -> list[str]:
        """See `Source.check`."""
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
                f"`data.counts={self.counts}` is not possible; it lists numbers from 0 to {most}."
            )
        if self.side % 2:
            problems.append(f"`data.side={self.side}` is not possible; it has to be even.")
        if not 0 < self.tint <= 1:
            problems.append(f"`data.tint={self.tint}` is not possible; it can be above 0, up to 1.")
        if unknown := sorted(set(self.mix) - set(FAMILIES)):
            problems.append(f"`data.mix` names {unknown[0]!r}; there is {', '.join(FAMILIES)}.")
        elif min(self.mix.values(), default=0) < 0 or not sum(self.mix.values()):
            problems.append(f"`data.mix={self.mix}` must hold positive whole numbers.")
        return problems

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides about the files' content."""
        own = set(Mosaic.__annotations__) - {"root", "stage"}
        return {"format": FORMAT} | {name: getattr(self, name) for name in sorted(own)}

    @property
    def folder(self) -> Path:
        """Where the files are; other arguments have another folder."""
        text = json.dumps(self.recipe, sort_keys=True)
        return Path(self.root) / f"mosaic-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def prepare(self) -> None:
        """Write the files unless a complete data set is there; see `Source.prepare`.

        A lock lets one process write while others wait; the rename makes files that are seen at all
        complete, and a folder that was damaged since is written again.
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
            rows: dict[str, list[Row]] = {"questions": [], "captions": []}
            for number, family in enumerate(islice(endless(mix), count)):
                rng = np.random.default_rng([self.data_seed, split, number])
                scene = draw(rng, pool, self, FAMILIES[family].full)
                image = f"{name}/{number:05d}.png"
                paint(scene, self.tint).save(folder / image)
                turns = FAMILIES[family].ask(scene, self, rng)
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
        """See `Source.split`."""
        return self._split(name, self.stage)

    def corpus(self) -> list[Split]:
        """See `Source.corpus`: both stages have one tokenizer."""
        return [self._split("train", "captions"), self._split("train", "questions")]

    def _split(self, name: SplitName, stage: str) -> Split:
        file = self.folder / f"{name}-{stage}.json"
        return Split(file, self.folder, "plain" if stage == "captions" else None)


# What is in a mosaic ------------------------------------------------------------------------------

Row = dict[str, Any]


@cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Ink `[n, 8, 8]` in 0..16 and label `[n]` of all digit images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target


def split_digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The digit images of training and of validation."""
    order = np.random.default_rng(seed).permutation(len(load_digits()[1]))
    return order[VAL_DIGITS:], order[:VAL_DIGITS]


def endless(mix: Mapping[str, int]) -> Iterator[str]:
    """Families in turn, as often as the mix says."""
    return cycle([family for family, times in mix.items() for _ in range(times)])


def draw(rng: np.random.Generator, pool: np.ndarray, mosaic: Mosaic, full: bool) -> Scene:
    """A scene with digits of the pool: in every cell, or some scattered over each quadrant."""
    tints = tuple(str(rng.choice(list(TINTS))) for _ in PLACES)
    scene = Scene(tints, rng.choice(pool, (mosaic.side, mosaic.side)))
    if not full:
        for number in range(len(PLACES)):
            cells = scene.quadrant(number)
            kept = int(rng.choice(mosaic.counts))
            empty = rng.permutation(cells.size)[kept:]
            cells[np.unravel_index(empty, cells.shape)] = -1
    return scene


def paint(scene: Scene, tint: float) -> Image.Image:
    """The picture: white ink on the quadrants' tints."""
    inks, _ = load_digits()
    side = len(scene.images)
    ink = np.where((scene.images >= 0)[..., None, None], inks[scene.images], 0) / INKS
    ink = ink.swapaxes(1, 2).reshape(side * DIGIT, side * DIGIT, 1)
    colours = np.array([TINTS[name] for name in scene.tints]).reshape(2, 2, 3)
    half = side * DIGIT // 2
    ground = 255 * tint * colours.repeat(half, 0).repeat(half, 1)
    return Image.fromarray((ground + ink * (255 - ground)).round().astype(np.uint8))


def read(images: np.ndarray) -> str:
    """The digits of some cells in reading order."""
    _, labels = load_digits()
    return "".join(map(str, labels[images[images >= 0]]))


def row(name: str, image: str, turns: Sequence[Exchange]) -> Row:
    """A row in LLaVA's format."""
    messages = []
    for number, turn in enumerate(turns):
        mark = "" if number else "<image>\n"
        messages.append({"from": "human", "value": mark + turn.question})
        messages.append({"from": "gpt", "value": turn.answer})
    return {"id": name, "image": image, "conversations": messages}


# Files that are complete or not there -------------------------------------------------------------

MANIFEST = "manifest.json"


def digest(folder: Path) -> str:
    """Fingerprint of the names and bytes of all files but the manifest."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["digest"] == digest(folder)
    except (OSError, ValueError, KeyError):
        return False
