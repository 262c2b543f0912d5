"""Read a whole data set; report its content and its bad rows.

    python tools/check_data.py data=llava_665k paths.data_root=/data
    python tools/check_data.py data=llava_json data.train_file=FILE data.image_root=FOLDER

All rows are read and all images decoded, by `data.num_workers` processes. Images that look odd (of
one colour, wholly transparent, scaled from more than 8 bits, rotated) and bad rows are listed at
the end; with bad rows, the command exits with 1.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.utils.data import Dataset

from dpn import data
from dpn.checkpoints import read_tokenizer
from dpn.cli.door import front_door
from dpn.common import hub
from dpn.common.labels import text_of
from dpn.common.progress import progress
from dpn.common.schema import check_arguments
from dpn.common.table import Table, terminal
from dpn.common.text import printable
from dpn.config import build
from dpn.config.checks import check_part
from dpn.data.batch import DataError
from dpn.data.conversation import Turn, checked_pieces, template
from dpn.data.encoding import cut
from dpn.data.image_files import remarks
from dpn.data.image_paths import find_image
from dpn.data.image_rules import ImageError
from dpn.data.loading import SampleLoader
from dpn.data.row_format import count_words, image_names, metadata, stray_marks
from dpn.data.rows import FileRows, answered_row
from dpn.data.sources.base import Source, Split
from dpn.data.tokenizer import EOS
from dpn.model import DPNProcessor
from dpn.runs.request import ConfigError, Request

#: Largest number of folders of images to show.
FOLDERS = 20


@dataclass(frozen=True)
class Settings:
    """Schema of the config.

    Attributes:
        data: Section `data`.
        paths: Section `paths`.
        split: Split to read.
        tokenizer: Folder or Hub name of the tokenizer; None: lengths are counted in words.
        examples: Number of bad rows of each kind, and of longest rows, to show.
        seed: Seed of the data's order.
    """

    data: dict[str, Any]
    paths: dict[str, Any]
    split: Literal["train", "val"]
    tokenizer: str | None
    examples: int
    seed: int


@dataclass(frozen=True)
class Finding:
    """Result for one row.

    Attributes:
        number: Index of the row in the file.
        name: Id of the row.
        source: First folder in the path of its first image, `.` without one, or `no image`.
        length: Number of ids, with one per image, or of words.
        problems: Kind and error sentence of each problem.
        remarks: Kind and subject of each remark about what can be used, but may not be meant.
    """

    number: int
    name: str
    source: str
    length: int
    problems: list[tuple[str, str]]
    remarks: list[tuple[str, str]]


@dataclass
class Report:
    """Counts of all findings.

    Attributes:
        examples: Number of bad rows of each kind, and of longest rows, to keep.
    """

    examples: int
    rows: int = 0
    bad: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    shown: dict[str, list[str]] = field(default_factory=dict)
    longest: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Add the finding of one row."""
        self.rows += 1
        self.bad += bool(finding.problems)
        self.sources[finding.source] += 1
        for count, found in (
            (self.problems, finding.problems),
            (self.remarks, finding.remarks),
        ):
            for kind, sentence in found:
                count[kind] += 1
                shown = self.shown.setdefault(kind, [])
                if len(shown) < self.examples:
                    shown.append(f"row {finding.number}, id {finding.name}: {sentence}")
        entry = (finding.length, -finding.number, finding.name)
        self.longest = heapq.nlargest(self.examples, [*self.longest, entry])


class Check(Dataset[Finding]):
    """Dataset of findings, one per row; bad rows raise nothing.

    Args:
        split: Split to read.
        source: Source with the limits on samples.
        processor: Processor that counts ids; None: lengths are counted in words.
    """

    def __init__(self, split: Split, source: Source, processor: DPNProcessor | None):
        self.split, self.source, self.processor = split, source, processor
        self.rows = FileRows(split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Finding:
        number, row = int(self.rows.numbers[place]), self.rows[place]
        names, problems, odd, length = image_names(row), [], [], count_words(row)
        for name in names:
            try:
                path = find_image(self.split.image_root, name)
                odd += [(remark, str(name)) for remark in remarks(path, self.split.images)]
            except ImageError as error:
                problems.append((error.kind, str(error)))
        try:
            turns, _ = answered_row(row)
            odd += [("mark in a question that is read as text", m) for m in stray_marks(turns)]
            length = self.measure(turns, len(names), length)
        except DataError as error:
            problems.append(("bad conversation", str(error)))
        return Finding(
            number=number,
            name=metadata(row, number)["id"],
            source=source_of(names[0]) if names else "no image",
            length=length,
            problems=problems,
            remarks=odd,
        )

    def measure(self, turns: Sequence[Turn], images: int, words: int) -> int:
        """Return the length of a row; raise a DataError if it cannot be trained on."""
        if self.processor is None:
            checked_pieces(turns, images, template(self.split.template or "v1"), EOS)
            return words
        refuse, most = self.source.too_long == "refuse", self.source.max_length
        ids, labels = self.processor.encode(
            turns, images, self.split.template, most if refuse else None
        )
        cut(ids, labels, most, self.processor.image_token_id)
        return len(ids)


def source_of(name: Any) -> str:
    """Return the first folder of an image's path, `.` if it lies in the image folder itself."""
    folder, slash, _ = text_of(name).lstrip("/").partition("/")
    return folder if slash else "."


def check(request: Request) -> None:
    """Check the config.

    Raises:
        ConfigError: With every problem of the config.
    """
    config = build.plain(request.config)
    problems = check_arguments("", Settings, config) + check_part("data", config["data"], data)
    if not problems:
        problems = build.data_module(request.config.data).source.check()
    if problems:
        raise ConfigError(problems)


def findings(source: Source, split: Split, processor: DPNProcessor | None) -> Iterator[Finding]:
    """Yield the finding of every row, in the order of the file."""
    batches: Iterable[list[Finding]] = SampleLoader(
        Check(split, source, processor),
        batch_size=64,
        num_workers=source.num_workers,
        collate_fn=list,
    )
    for batch in progress(batches, "reading rows"):
        yield from batch


def show(report: Report, unit: str) -> None:
    """Print the report."""
    console = terminal(soft_wrap=True)
    sources = report.sources.most_common()
    lines = [(source, str(count)) for source, count in sources[:FOLDERS]]
    if others := sources[FOLDERS:]:
        lines.append((f"{len(others)} others", str(sum(count for _, count in others))))
    Table(f"{report.rows} rows", ("source", "rows"), tuple(lines)).show(console)
    longest = tuple((str(length), str(-number), name) for length, number, name in report.longest)
    Table("longest", (unit, "row", "id"), longest).show(console)
    for title, counts in (("Worth a look", report.remarks), ("Bad", report.problems)):
        for kind, count in counts.most_common():
            console.print(f"{title}: {kind}: {count}", style="bold")
            for example in report.shown[kind]:
                console.print(printable(f"  {example}"))


@front_door("check_data")
def main(request: Request) -> None:
    """Command line of `python tools/check_data.py`."""
    check(request)
    config = request.config
    source = build.data_module(config.data).source
    source.prepare()
    split = source.split(config.split)
    if split is None:
        raise DataError(f"The data set has no split {config.split}; use the other one.")
    processor = None
    if config.tokenizer is not None:
        processor = DPNProcessor(read_tokenizer(hub.find(config.tokenizer)))
    report = Report(config.examples)
    for finding in findings(source, split, processor):
        report.add(finding)
    show(report, "words" if processor is None else "ids")
    if report.bad:
        raise DataError(f"{report.bad} of {report.rows} rows are bad.")
    print("All rows are fine.")


if __name__ == "__main__":
    main()
