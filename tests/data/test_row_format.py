"""Rows of other programs: what is read, and what is refused by the name of its key."""

import json

import pytest

from dpn.data.batch import DataError
from dpn.data.row_format import count_words, image_names, metadata, read_row, stray_marks
from tests.data.conftest import gpt, human

SEEN = [human("<image>\nWhat is it?"), gpt("grey")]
TALK = [human("hi"), gpt("yo")]
BOTH = [human("<image><image>\nSame?"), gpt("yes")]


def parts(*turns):
    return [{"role": role, "content": content} for role, content in turns]


IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "q"}


@pytest.mark.parametrize(
    ("row", "images", "texts"),
    [
        ({"image": "a.png", "conversations": SEEN}, ["a.png"], ["<image>\nWhat is it?", "grey"]),
        ({"images": ["a.png"], "conversations": SEEN}, ["a.png"], None),
        ({"images": "a.png", "conversations": SEEN}, ["a.png"], None),
        ({"images": ["a.png", "b.png"], "conversations": BOTH}, ["a.png", "b.png"], None),
        ({"image": "a.png", "images": ["a.png"], "conversations": SEEN}, ["a.png"], None),
        ({"image": None, "images": [], "conversations": TALK}, [], ["hi", "yo"]),
        ({"image": "", "messages": TALK}, [], ["hi", "yo"]),
        (
            {"image": "a.png", "messages": parts(("user", [IMAGE, TEXT]), ("assistant", "a"))},
            ["a.png"],
            ["<image>q", "a"],
        ),
        (
            {"conversations": [{"from": "human", "value": None, "content": "q"}, gpt("a")]},
            [],
            ["q", "a"],
        ),
        # Keys that change nothing, and metadata.
        (
            {"system": "", "video": None, "tools": "[]", "weight": 1, "conversations": TALK},
            [],
            None,
        ),
        ({"conversations": [human("hi"), gpt("yo") | {"loss": True, "weight": 1.0}]}, [], None),
        ({"source": "web", "image_id": 7, "bbox": [1], "conversations": TALK}, [], None),
        ({"image": "a.png", "image_url": "http://x", "conversations": SEEN}, ["a.png"], None),
        # Texts that only look like marks.
        ({"conversations": [human("What does <video> do in HTML?"), gpt("<video>")]}, [], None),
        ({"conversations": [human("<img src='x'> is what?"), gpt("a")]}, [], None),
    ],
)
def test_what_has_a_clear_meaning_is_read(row, images, texts):
    turns, found = read_row(row)
    assert found == image_names(row) == images
    if texts is not None:
        assert [turn.text for turn in turns] == texts
        assert count_words(row) == sum(len(text.split()) for text in texts)


def test_marks_that_are_read_as_text_are_found():
    turns, _ = read_row({"conversations": [human("Is <video> or <Image> a tag?"), gpt("<img>")]})
    assert stray_marks(turns) == ["<video>", "<Image>"]


REFUSED = {
    "list": ([1, 2], "it is not a mapping"),
    "text": ("hello", "it is not a mapping"),
    "null": (None, "it is not a mapping"),
    "nothing": ({}, "there is no conversation"),
    "another name": (
        {"id": 1, "conversation": TALK},
        r"there is no conversation.* but the row holds id, conversation\.",
    ),
    "conversations as text": ({"conversations": json.dumps(TALK)}, "must be a list of turns"),
    "conversations as object": ({"conversations": {"q": "a"}}, r"is \{'q': 'a'\}, but must be"),
    "two conversations": (
        {"conversations": TALK, "messages": SEEN},
        "`conversations` and `messages` differ",
    ),
    "two images": (
        {"image": "a.png", "images": ["b.png"], "conversations": SEEN},
        "`image` and `images` differ",
    ),
    "text and parts": (
        {"conversations": [human("q") | {"content": "r"}, gpt("a")]},
        "`value` and `content` differ",
    ),
    **{
        key: ({key: value, "conversations": TALK}, f"`{key}` is .*, but {reason}")
        for key, value, reason in (
            ("system", "Be brief.", "the system text comes from the template"),
            ("system_prompt", "Be brief.", "the system text comes from the template"),
            ("System", "Be brief.", "the system text comes from the template"),
            ("video", "v.mp4", "only images are read"),
            ("videos", ["v.mp4"], "only images are read"),
            ("audio", "a.wav", "only images are read"),
            ("tools", [{"name": "f"}], "tools are not supported"),
            ("loss", False, "all answers count alike"),
            ("weight", 0.5, "all answers count alike"),
            ("weights", [1, 0], "all answers count alike"),
            ("rejected", "no", "preferences are not trained on"),
        )
    },
    **{
        f"turn with {key}": (
            {"conversations": [human("q"), gpt("a") | {key: value}]},
            f"`{key}` of turn 2 is .*, but {reason}",
        )
        for key, value, reason in (
            ("loss", False, "all answers count alike"),
            ("weight", 0, "all answers count alike"),
            ("train", False, "all answers count alike"),
            ("image", "a.png", "images are listed in `image` of the row"),
            ("video", "a.mp4", "only images are read"),
            ("tool_calls", [{}], "tools are not supported"),
            ("reasoning_content", "Hm.", "only the answer itself is learned"),
        )
    },
    **{
        f"image as {key}": ({key: "a.png", "conversations": TALK}, f"`{key}` is not read; name")
        for key in ("Image", "image_path", "img", "image_url", "pictures")
    },
    **{
        f"mark {mark!r}": (
            {"conversations": [human(text.format(mark)), gpt("a")]},
            f"turn 1 begins or ends with {mark}".replace("|", r"\|"),
        )
        for text in ("{}\nq", "q {}", " {} q")
        for mark in ("<video>", "<Image>", "<image >", "<audio>", "<img>", "<|image|>", "<image_1>")
    },
    "mark after a dropped turn": (
        {"conversations": [gpt("hello"), human("<video>\nq"), gpt("a")]},
        "turn 2 begins or ends with <video>",
    ),
    "mark beside an image": (
        {"image": "a.png", "conversations": [human("<image>\n<video>\nq"), gpt("a")]},
        "turn 1 begins or ends with <video>",
    ),
    "system turn": (
        {"conversations": [{"from": "system", "value": "Be brief."}, *TALK]},
        "turn 1 is a system text",
    ),
    "list as value": (
        {"conversations": [human("q"), gpt(["yes"])]},
        r"turn 2 has no text \(`value` is \['yes'\]\)",
    ),
    "object as value": ({"conversations": [human("q"), gpt({"a": 1})]}, r"is \{'a': 1\}"),
    "number as value": ({"conversations": [human("q"), gpt(3)]}, "`value` is 3"),
    "tool turn": (
        {"conversations": [human("q"), {"from": "function_call", "value": "{}"}]},
        "turn 2 has the unknown role 'function_call'",
    ),
    "part of another type": (
        {"messages": parts(("user", [{"type": "video", "text": "v"}, TEXT]), ("assistant", "a"))},
        "turn 1 has a part of type 'video'",
    ),
    "part with its own image": (
        {"messages": parts(("user", [IMAGE | {"path": "b.png"}, TEXT]), ("assistant", "a"))},
        "`path` of an image part of turn 1: images are listed in `image`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_ignored_is_refused_by_name(name):
    row, sentence = REFUSED[name]
    with pytest.raises(DataError, match=sentence) as caught:
        read_row(row)
    assert len(str(caught.value)) < 300
    image_names(row), count_words(row), metadata(row, 0)  # raise nothing


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, ("7", None, None)),
        ({"id": None, "family": None, "difficulty": None}, ("7", None, None)),
        ({"id": 3, "family": 3, "difficulty": 3}, ("3", "3", 3)),
        ({"id": "a b", "family": "a/b", "difficulty": "hard"}, ("a b", "a/b", "hard")),
        ({"id": True, "family": True, "difficulty": False}, ("true", "true", "false")),
        ({"id": ["a"], "family": ["a"], "difficulty": [1]}, ('["a"]', '["a"]', "[1]")),
        ({"id": {"a": 1}, "family": {}, "difficulty": {}}, ('{"a": 1}', "{}", "{}")),
        ({"family": float("nan"), "difficulty": float("nan")}, ("7", None, None)),
        ({"family": 1e308, "difficulty": 1e308}, ("7", "1e+308", "1e+308")),
        ({"family": "", "difficulty": ""}, ("7", None, None)),
        ({"family": "[/b]", "difficulty": " 2 "}, ("7", "[/b]", 2)),
        ({"id": "\ud83d", "family": "a\nb", "difficulty": "1.5"}, ("\\ud83d", "a b", 1.5)),
        ({"family": 10**400, "difficulty": -(10**400)}, ("7", f"1{'0' * 400}", f"-1{'0' * 400}")),
        ({"difficulty": "nan"}, ("7", None, "nan")),
        ({"difficulty": "inf"}, ("7", None, "inf")),
    ],
)
def test_metadata_becomes_what_tables_can_show(row, expected):
    found = metadata(row, 7)
    assert tuple(found.values()) == expected
    assert metadata(found, 0) == found  # a file that was written is read alike
    json.dumps(found).encode()
