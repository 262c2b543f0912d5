"""One row of a data file: what is read, and what is refused.

A row is an object with `conversations` (or `messages`), optionally `image` (or `images`), `id`,
`family` and `difficulty`. Other keys are metadata and allowed, except those that would change what
a model learns: ignoring them would train on something else than the file says.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from dpn.common import labels
from dpn.common.text import shorten
from dpn.data.batch import DataError
from dpn.data.conversation import IMAGE, Turn, read_turn, read_turns

_IMAGES = ("image", "images")
_TURNS = ("conversations", "messages")
_NO_VIDEO = "only images are read; extract frames and list them in `image`, or drop the row"
_NO_TOOLS = "tools are not supported; write their texts into the turns, or drop the row"
_NO_PAIRS = "preferences are not trained on; keep the better answer in the conversation"
_NO_SYSTEM = (
    "the system text comes from the template (`data.template`); put it into the first question"
)
_NO_WEIGHTS = "all answers count alike; remove the key, or the turns that are not to be learned"
_NO_THOUGHTS = "only the answer itself is learned; write the thoughts into it, or remove the key"
_NO_OWN_IMAGE = "images are listed in `image` of the row, in the order of the <image> marks"
#: Keys that are refused unless their value changes nothing, and why. Also refused in turns.
_REFUSED = {
    **dict.fromkeys(("system", "system_prompt", "system_message"), _NO_SYSTEM),
    **dict.fromkeys(("video", "videos", "audio", "audios", "video_path", "audio_path"), _NO_VIDEO),
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), _NO_TOOLS),
    **dict.fromkeys(("chosen", "rejected", "rejected_response"), _NO_PAIRS),
    **dict.fromkeys(("loss", "loss_mask", "loss_weight", "loss_scale"), _NO_WEIGHTS),
    **dict.fromkeys(("weight", "weights", "sample_weight"), _NO_WEIGHTS),
}
_REFUSED_IN_TURNS = _REFUSED | {
    **dict.fromkeys((*_IMAGES, "image_url", "image_path"), _NO_OWN_IMAGE),
    **dict.fromkeys(("train", "training"), _NO_WEIGHTS),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _NO_THOUGHTS),
}
#: Names that other programs give to `image`; refused in rows that have no `image`.
_IMAGE_ALIASES = {
    *("image", "images", "img", "imgs", "picture", "pictures", "image_file", "image_files"),
    *("image_path", "image_paths", "image_url", "image_urls", "image_bytes", "image_base64"),
}
#: Marks of images, videos or sounds, in the spellings of other programs, too.
_MARK = r"<\s*\|?\s*(?:image|img|video|audio)s?[\s_-]*\d*\s*\|?\s*/?\s*>"
_ANY_MARK = re.compile(_MARK, re.IGNORECASE)
_OUTER_MARK = re.compile(rf"\A{_MARK}|{_MARK}\Z", re.IGNORECASE)


def read_row(row: Any) -> tuple[list[Turn], list[Any]]:
    """Read the turns and the image names of a row; the last turn may lack its answer.

    Raises:
        DataError: If the row is not an object, its conversation cannot be read (see `read_turns`),
            or it holds something that would be ignored although it changes what is learned.
    """
    if not isinstance(row, Mapping):
        raise DataError("it is not a mapping with `image` and `conversations`.")
    messages, images = _one_of(row, _TURNS), image_names(row)
    _one_of(row, _IMAGES)
    _check_keys(row, _REFUSED, "")
    if not images and (other := _image_alias(row)):
        raise DataError(f"`{other}` is not read; name the key `image`.")
    if messages is None and (keys := [key for key in row if key not in _TURNS]):
        raise DataError(
            "there is no conversation; `conversations` must be a list of turns, but the row holds"
            f" {shorten(labels.text_of(', '.join(keys)), 100)}."
        )
    turns = read_turns(messages)
    for number, message in enumerate(messages, 1):
        _check_keys(message, _REFUSED_IN_TURNS, f" of turn {number}")
        _check_parts(_one_of(message, ("value", "content")), number)
        _one_of(message, ("from", "role"))
    dropped = len(messages) - len(turns)  # an answer without a question at the start
    for number, turn in enumerate(turns, 1 + dropped):
        mark = _OUTER_MARK.search(turn.text.replace(IMAGE, "").strip())
        if mark and turn.role == "human":
            raise DataError(
                f"turn {number} begins or ends with {mark.group()}, which stands for nothing:"
                f" write {IMAGE} for an image; videos and sounds are not read."
            )
    return turns, images


def stray_marks(turns: Sequence[Turn]) -> list[str]:
    """Return marks of other programs inside the questions, where they are read as text."""
    texts = [turn.text.replace(IMAGE, "") for turn in turns if turn.role == "human"]
    return [mark for text in texts for mark in _ANY_MARK.findall(text)]


def image_names(row: Any) -> list[Any]:
    """Return a row's images as a list; the row holds none, one path, or a list of paths."""
    for key in _IMAGES:
        image = row.get(key) if isinstance(row, Mapping) else None
        if image is not None and image != "" and image != []:
            return image if isinstance(image, list) else [image]
    return []


def metadata(row: Any, number: int) -> dict[str, Any]:
    """Return the id, family and difficulty of a row, as tables can show them; nothing is refused.

    Args:
        row: Content of the row.
        number: Number of the row in the file, the id of a row without one.
    """
    row = row if isinstance(row, Mapping) else {}
    name = row.get("id")
    return {
        "id": str(number) if name is None else labels.text_of(name),
        "family": labels.family(row.get("family")),
        "difficulty": labels.difficulty(row.get("difficulty")),
    }


def count_words(row: Any) -> int:
    """Count the words of all turns of a row, split at whitespace, as LLaVA measures length.

    Unreadable turns count as zero words; they are reported when the row is loaded.
    """
    found = [row.get(key) for key in _TURNS] if isinstance(row, Mapping) else []
    messages = next((one for one in found if isinstance(one, list)), [])
    words = 0
    for number, message in enumerate(messages, 1):
        with suppress(DataError):
            words += len(read_turn(number, message).text.split())
    return words


def _one_of(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the value under the one key that is given, None without; two must be equal."""
    given = {key: row[key] for key in keys if row.get(key) not in (None, "", [])}
    first = next(iter(given.values()), None)
    if any(value not in (first, [first]) and [value] != first for value in given.values()):
        raise DataError(f"`{'` and `'.join(given)}` differ; give one of them.")
    return first


def _check_keys(holder: Any, refused: Mapping[str, str], where: str) -> None:
    for key, value in holder.items() if isinstance(holder, Mapping) else ():
        reason = refused.get(key.lower())
        if reason is None or value in (None, "", "[]", "{}") or value == [] or value == {}:
            continue
        if reason == _NO_WEIGHTS and value == 1:  # also true
            continue
        raise DataError(f"`{key}`{where} is {shorten(repr(value), 60)}, but {reason}.")


def _image_alias(row: Mapping[str, Any]) -> str | None:
    """Return the key of a row that seems to hold its image under another name."""
    for key, value in row.items():
        if key not in _IMAGES and key.lower() in _IMAGE_ALIASES and value:
            return key
    return None


def _check_parts(parts: Any, number: int) -> None:
    """Check that the typed parts of a turn are text, or images that are listed in the row."""
    for part in parts if isinstance(parts, list) else ():
        if part["type"] not in ("text", "image"):
            raise DataError(
                f"turn {number} has a part of type {part['type']!r}; text and image are read."
            )
        extra = [key for key in part if key not in ("type", "text", "index") and part[key]]
        if extra and part["type"] == "image":
            raise DataError(f"`{extra[0]}` of an image part of turn {number}: {_NO_OWN_IMAGE}.")
