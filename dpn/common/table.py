"""A table of texts for a terminal, a Markdown file and a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from dpn.common.text import one_line


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows.
        head: of each column.
        body: rows of cells.
        note: how to read it.
    """

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """As Markdown."""
        table = markdown([self.head, *self.body])
        return f"## {self.title}\n\n{table}" + (f"\n{self.note}\n" if self.note else "")

    def show(self, console: Console) -> None:
        """On a terminal."""
        table = RichTable(title=self.title, caption=self.note or None, title_justify="left")
        for number, name in enumerate(self.head):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for line in self.body:
            table.add_row(*line)
        console.print(table)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first line is its head, and no cell is read as markup."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    cells = [[plain(cell) for cell in line] for line in ruled]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def plain(text: str) -> str:
    """Text of one line in which Markdown finds no cell and no HTML."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")
