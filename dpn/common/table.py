"""Tables for terminals, Markdown files and pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from dpn.common.text import one_line


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        title: Title above the table.
        head: Titles of the columns; empty if there is a note alone.
        body: Rows of cells.
        note: Note below the table.
    """

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown."""
        table = markdown([self.head, *self.body]) if self.head else ""
        return f"## {self.title}\n\n{table}" + (f"\n{self.note}\n" if self.note else "")

    def show(self, console: Console) -> None:
        """Print the table."""
        if not self.head:
            console.print(f"{self.title}: {self.note}", markup=False, highlight=False)
            return
        table = RichTable(title=self.title, caption=self.note or None, title_justify="left")
        for number, name in enumerate(self.head):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for line in self.body:
            table.add_row(*line)
        console.print(table)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whose first line is the head; cells are escaped."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    cells = [[plain(cell) for cell in line] for line in ruled]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def plain(text: str) -> str:
    """Text on one line, escaped for a cell of a Markdown table."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")
