"""Text made to fit, and made safe for terminals, Markdown and spreadsheets."""

import re
import unicodedata
from typing import Any
from urllib.parse import quote

#: What Markdown would read: an escape, the end of a cell, and the middle of a link.
_MARKUP = re.compile(r"[\\|]|(?<=\])\(")
#: Starts of a cell that a spreadsheet may read as a formula, also in their wide forms.
_FORMULAS = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20")


def one_line(text: str) -> str:
    """The words of a text with single spaces between them."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """Replace what is not a character to print, except line breaks and tabs: control characters,
    which can rewrite a terminal, and halves of characters, which no file can hold.
    """
    lines = text.replace("\r\n", "\n")
    return "".join("\ufffd" if _is_control(letter) else letter for letter in lines)


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"


def answer_text(answer: str) -> str:
    """An answer to print, as it is; an empty one is named."""
    return answer if answer.strip() else "(empty answer)"


def escape_markdown(text: str) -> str:
    """One line of text for a heading or a cell of Markdown, without HTML and links; what stands
    between backticks remains code.
    """
    line = _MARKUP.sub(lambda mark: f"\\{mark[0]}", printable(one_line(text)))
    return line.replace("&", "&amp;").replace("<", "&lt;")


def markdown_image(words: str, address: str) -> str:
    """An image in Markdown: its description, and its address relative to the page."""
    shown = escape_markdown(words.replace("[", "(").replace("]", ")"))
    return f"![{shown}]({quote(address)})"


def code_span(text: str) -> str:
    """One line of text as code in Markdown, whatever backticks it holds."""
    line = printable(one_line(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    blank = " " if "`" in line else ""
    return f"{fence}{blank}{line}{blank}{fence}"


def spreadsheet_cell(value: Any) -> Any:
    """A value that spreadsheets do not read as a formula; texts that could be one are quoted."""
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(_FORMULAS) or value.lstrip().startswith(_FORMULAS)
    return f"'{printable(value)}" if is_formula else printable(value)


def shorten(text: str, letters: int) -> str:
    """One line of at most this many letters; an ellipsis stands for what is cut off."""
    line = one_line(text)
    return line if len(line) <= letters else line[: letters - 1] + "…"
