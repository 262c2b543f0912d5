"""Turns of a conversation, and the templates that render them.

A template renders a whole conversation as text pieces, each marked as supervised or not.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from dpn.common.text import shorten
from dpn.data.batch import DataError

IMAGE = "<image>"
ROUTER = "<ROUTER>"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Role = Literal["human", "assistant"]
ROLES: dict[str, Role] = {
    "human": "human",
    "user": "human",
    "gpt": "assistant",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; the text may hold `<image>` marks."""

    role: Role
    text: str


class Piece(NamedTuple):
    """A rendered text; the model learns to generate the supervised pieces."""

    text: str
    supervised: bool = False


@dataclass(frozen=True)
class Template:
    """Texts that join the turns of a conversation into one text.

    Attributes:
        system: Text at the start of the conversation.
        human: Text at the start of a human turn.
        mark: Text that stands for an image, at the start of its turn.
        instruction: Whether the words of the human turns are kept.
        cue: Text before an answer; a prompt for generation ends with it.
        answer: Text at the start of an answer, supervised.
        end: Text at the end of an answer, supervised; `{eos}` is the tokenizer's end token.
    """

    system: str
    human: str
    mark: str
    instruction: bool
    cue: str
    answer: str
    end: str


TEMPLATES = {
    # LLaVA's pretraining: the image, then its caption, without roles or an end token.
    "plain": Template("", "", IMAGE, False, "", "", "\n"),
    # LLaVA-1.5's finetuning and all evaluations.
    "v1": Template(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
        "USER: ",
        f"{IMAGE}\n",
        True,
        " ASSISTANT:",
        " ",
        "{eos}",
    ),
}
# v1 without the system text, which would be a third of the work of small models.
TEMPLATES["short"] = replace(TEMPLATES["v1"], system="")


def template(name: str) -> Template:
    """Return the template of a name.

    Raises:
        ValueError: If there is no such template.
    """
    if name not in TEMPLATES:
        raise ValueError(f"unknown template {name!r}; choose {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def read_turns(messages: Any) -> list[Turn]:
    """Read turns from LLaVA's `{"from", "value"}` or Hugging Face's `{"role", "content"}` messages.

    An assistant turn at the start of a conversation is dropped, as in LLaVA.

    Raises:
        DataError: If there is no conversation, a role is unknown, roles do not alternate or a turn
            is empty.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        given = "" if not messages else f" is {_show(messages)}, but"
        raise DataError(
            f"there is no conversation; `conversations`{given} must be a list of turns."
        )
    turns = [read_turn(number, message) for number, message in enumerate(messages, 1)]
    if turns[0].role == "assistant":
        turns = turns[1:]
    if not turns:
        raise DataError("the conversation has no human turn; it needs a question and an answer.")
    for number, (turn, role) in enumerate(
        zip(turns, itertools.cycle(("human", "assistant")), strict=False), 1
    ):
        if turn.role != role:
            raise DataError(
                f"two turns of the {turn.role} follow each other; roles must alternate."
            )
        if not turn.text or (role == "assistant" and not turn.text.strip()):
            kind = "answer" if role == "assistant" else "question"
            raise DataError(f"the {kind} in turn {number} is empty; fill it in or drop the row.")
    return turns


def read_turn(number: int, message: Any) -> Turn:
    """Read one turn from a message; `number` identifies it in error messages.

    Raises:
        DataError: If it has no known role or no text.
    """
    if not isinstance(message, Mapping):
        raise DataError(
            f"turn {number} is {_show(message)}; it must be a mapping of `from` and `value`."
        )
    role, given = _first(message, "from", "role"), _first(message, "value", "content")
    if role == "system":
        raise DataError(
            f"turn {number} is a system text, but the template has its own (`data.template`); put"
            " it into the first question or drop the turn."
        )
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(
            f"turn {number} has the unknown role {_show(role)}; use {', '.join(ROLES)}."
        )
    text = _join_parts(given) if isinstance(given, list) else given
    if not isinstance(text, str):
        raise DataError(
            f"turn {number} has no text (`value` is {_show(given)}); it must be a string, or a list"
            ' of parts such as {"type": "text", "text": "..."}.'
        )
    if _LONE_SURROGATE.search(text):  # valid in JSON, but tokenizers fail on it
        raise DataError(f"turn {number} holds a lone surrogate (half a character); remove it.")
    return Turn(ROLES[role], text)


def _first(message: Mapping[str, Any], *keys: str) -> Any:
    """Return the first value that is not null."""
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _show(value: Any) -> str:
    return shorten(repr(value), 60)


def _join_parts(parts: list[Any]) -> str | None:
    """Join the text of Hugging Face's list of typed parts; None if it is not such a list."""
    try:
        return "".join(IMAGE if part["type"] == "image" else part["text"] for part in parts)
    except (KeyError, TypeError):
        return None


def check_words(turns: Sequence[Turn], eos: str) -> None:
    """Check that no text holds a token that changes how a conversation is split or routed.

    Raises:
        DataError: If one does; names the turn and the token.
    """
    for number, turn in enumerate(turns, 1):
        for token in (eos, ROUTER, *([IMAGE] if turn.role == "assistant" else [])):
            if token in turn.text:
                raise DataError(
                    f"turn {number} of the {turn.role} holds the reserved token {token};"
                    " write it differently or drop the row."
                )


def check_cues(pieces: Sequence[Piece], style: Template) -> None:
    """Check that the words before an answer appear nowhere else in a round.

    From such a sample LLaVA would learn nothing, or the wrong words.

    Raises:
        DataError: If they do; names the round.
    """
    opening = style.cue + style.answer
    for number, (question, answer) in enumerate(
        zip(pieces[1::2], pieces[2::2], strict=False) if opening else (), 1
    ):
        place = len(question.text) - len(style.cue)
        text = question.text + answer.text
        if text.find(opening) != place or opening in text[place + len(opening) :]:
            raise DataError(
                f"round {number} holds {opening!r} inside a text, where no answer begins;"
                " write it differently or drop the row."
            )


def place_images(turns: Sequence[Turn], images: int) -> list[tuple[int, str]]:
    """Return the number of images and the text without marks of each turn.

    Raises:
        DataError: If the `<image>` marks and the images do not match.
    """
    marks = [turn.text.count(IMAGE) if turn.role == "human" else 0 for turn in turns]
    if sum(marks) != images:
        raise DataError(
            f"the human turns hold {sum(marks)} {IMAGE} marks but the row has {images} images;"
            " give each image exactly one mark."
        )
    return [
        (count, turn.text.replace(IMAGE, "").strip() if count else turn.text)
        for count, turn in zip(marks, turns, strict=True)
    ]


def render(
    turns: Sequence[Turn], images: int, style: Template, eos: str, router: bool
) -> list[Piece]:
    """Render a conversation as text pieces; a final human turn is left open for the answer.

    Args:
        turns: Alternating turns, starting with the human.
        images: Number of images in the sample.
        style: Conversation template.
        eos: Text of the tokenizer's end token.
        router: Whether `<ROUTER>` ends every human turn of a sample with images.

    Raises:
        DataError: If marks and images do not match.
    """
    pieces = [Piece(style.system)]
    for turn, (marks, words) in zip(turns, place_images(turns, images), strict=True):
        if turn.role == "human":
            pieces.append(_question(marks, words, style, router and images > 0))
        else:
            pieces.append(Piece(style.answer + words + style.end.format(eos=eos), True))
    return pieces


def render_follow_up(words: str, style: Template, eos: str, router: bool) -> Piece:
    """Render what follows the words of an answer: its end, and a human turn without images."""
    question = _question(0, words, style, router)
    return Piece(style.end.format(eos=eos) + question.text)


def _question(marks: int, words: str, style: Template, router: bool) -> Piece:
    text = words if style.instruction else ""
    if marks:  # a turn of images alone has no line break after the last one
        text = (style.mark * marks + text).rstrip()
    return Piece(style.human + text + (ROUTER if router else "") + style.cue)


def checked_pieces(
    turns: Sequence[Turn], images: int, style: Template, eos: str, router: bool = False
) -> list[Piece]:
    """Render a conversation for training, after checking that it can be learned.

    Raises:
        DataError: If marks and images do not match, or a text holds a reserved token or the words
            that precede an answer.
    """
    check_words(turns, eos)
    pieces = render(turns, images, style, eos, router)
    check_cues(pieces, style)
    return pieces
