"""Text made to fit."""


def one_line(text: str) -> str:
    """The words of a text with single spaces between them."""
    return " ".join(text.split())


def shorten(text: str, letters: int) -> str:
    """One line of at most this many letters; an ellipsis stands for what is cut off."""
    line = one_line(text)
    return line if len(line) <= letters else line[: letters - 1] + "…"


#: What people are shown instead of an answer without a character.
EMPTY_ANSWER = "(empty answer)"
