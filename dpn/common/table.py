"""Tables for terminals, Markdown files and pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dpn.common.text import escape_markdown, printable


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
        note = f"\n{escape_markdown(self.note)}\n" if self.note else ""
        return f"## {escape_markdown(self.title)}\n\n{table}{note}"

    def show(self, console: Console) -> None:
        """Print the table; no text in it is read as markup."""
        if not self.head:
            console.print(_text(f"{self.title}: {self.note}"))
            return
        note = _text(self.note) if self.note else None
        table = RichTable(title=_text(self.title), caption=note, title_justify="left")
        for number, name in enumerate(self.head):
            table.add_column(_text(name), justify="right" if number else "left", overflow="fold")
        for line in self.body:
            table.add_row(*map(_text, line))
        console.print(table)


def terminal(file: IO[str] | None = None, **options: Any) -> Console:
    """A console that prints text as it is: no markup, no emoji codes, no colours for numbers."""
    return Console(file=file, markup=False, emoji=False, highlight=False, **options)


def _text(text: str) -> Text:
    return Text(printable(text))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whose first line is the head; cells are escaped."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    cells = [[escape_markdown(cell) for cell in line] for line in ruled]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"
