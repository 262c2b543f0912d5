import json
from pathlib import Path

import pytest

from dpn.data.batch import DataError
from dpn.data.rows import Conversations, FileRows, Questions
from dpn.data.sources.base import Split
from tests.data.conftest import gpt, human, row

SEEN = human("<image>\nWhat colour is the cat?")


def split_of(file, **options):
    return Split(Path(file), Path(file).parent / "images", **options)


def dataset(file, processor, kind=Conversations, **options):
    return kind(split_of(file), processor, **options)


def test_rows_become_samples(write, processor):
    rows = [
        row(1) | {"family": "easy", "difficulty": 2},
        row(2, SEEN, gpt("red"), image="red.png"),
        row(3, human("<image><image> Both?"), gpt("Yes."), image=["green.png", "blue.png"]),
    ]
    text, one, two = (dataset(write(rows), processor)[i] for i in range(3))
    assert (len(text.images), len(one.images), len(two.images)) == (0, 1, 2)
    assert text.meta == {"id": "r1", "family": "easy", "difficulty": 2, "skipped": {}}
    assert [sample.sample_id for sample in (text, one, two)] == [0, 1, 2]
    assert two.input_ids.count(processor.image_token_id) == 2
    assert one.images[0].shape == (3, 4, 8)
    mean, std = processor.transform.mean, processor.transform.std
    colours = [
        [round(float(c[0, 0]) * s + m) for c, m, s in zip(image, mean, std, strict=True)]
        for image in (*one.images, *two.images)
    ]
    assert [c.index(1) for c in colours[:1] + colours[2:]] == [0, 2]  # red and blue
    assert processor.decode([i for i in one.labels if i >= 0]) == "red"


BAD = {
    "no conversation": ({"id": "x"}, "there is no conversation"),
    "no mapping": ([1, 2], "it is not a mapping"),
    "unknown role": (row(0, {"from": "me", "value": "hi"}), "unknown role 'me'"),
    "empty answer": (row(0, human("hi"), gpt("")), "answer in turn 2 is empty"),
    "no last answer": (row(0, human("hi"), gpt("ho"), human("hm")), "last turn has no answer"),
    "mark without image": (row(0, SEEN, gpt("red")), "1 <image> marks but the row has 0"),
    "image without mark": (
        row(0, human("hi"), gpt("ho"), image="red.png"),
        "hold 0 <image> marks but the row has 1",
    ),
    "missing image": (row(0, SEEN, gpt("red"), image="gone.png"), "gone.png does not exist"),
    "outside": (row(0, SEEN, gpt("red"), image="../train.json"), "lies outside the image"),
    "corrupt image": (row(0, SEEN, gpt("red"), image="bad.png"), "bad.png is corrupt"),
    "too long": (row(0, human("hi " * 200), gpt("ho")), "ids, the maximum is 150"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_raise_naming_file_and_row_or_are_skipped_and_reported(name, write, processor):
    bad, sentence = BAD[name]
    file = write([row(0), bad, bad, row(3)])
    (file.parent / "images" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=rf"^Row 1 of .*train\.json: .*{sentence}"):
        dataset(file, processor, max_length=150)[1]
    skipping = dataset(file, processor, max_length=150, on_error="skip")
    assert [skipping[i].sample_id for i in range(4)] == [0, 3, 3, 3]
    assert [key[1] for key in skipping[1].meta["skipped"]] == [1, 2]
    assert sentence in skipping[1].meta["skipped"][str(file), 2]


def test_the_row_after_the_last_is_the_first_and_all_bad_is_an_error(write, processor):
    skipping = dataset(write([row(0), {}]), processor, on_error="skip")
    assert skipping[1].sample_id == 0
    hopeless = dataset(write([{}, {}]), processor, on_error="skip")
    with pytest.raises(DataError, match=r"Every row of .* is bad; the last one: Row 0 of"):
        hopeless[1]


def test_questions_are_the_prompts_of_each_turn(write, processor):
    rows = [
        row(0, SEEN, gpt("red"), human("And now?"), gpt("green"), image="red.png"),
        row(1),
    ]
    questions = dataset(write(rows), processor, Questions)
    assert len(questions) == 3
    assert [questions.place_of(*key) for key in ((0, 0), (0, 1), (1, 0))] == [0, 1, 2]
    whole = dataset(write(rows), processor)[0]
    for i, (turn, answer) in enumerate([(0, "red"), (1, "green")]):
        sample = questions[i]
        assert sample.sample_id == 0
        assert (sample.meta["turn"], sample.meta["reference"]) == (turn, answer)
        assert set(sample.labels) == {-100}
        length = len(sample.input_ids)
        assert sample.input_ids == whole.input_ids[:length]
        assert whole.labels[length - 1 : length + 1] == [-100, whole.input_ids[length]]


def test_a_prompt_has_the_images_of_its_own_and_earlier_turns(write, processor):
    turns = (SEEN, gpt("red"), SEEN, gpt("green"))
    file = write([row(0, *turns, image=["red.png", "green.png"])])
    questions = dataset(file, processor, Questions)
    assert [len(questions[i].images) for i in range(2)] == [1, 2]
    broken = dataset(write([row(0, *turns, image="red.png")]), processor, Questions)
    with pytest.raises(DataError, match="2 <image> marks but the row has 1"):
        broken[0]


def test_bad_rows_of_questions_obey_on_error(write, processor):
    file = write([row(0), row(1, human("hi")), row(2, {"from": "me"})])
    with pytest.raises(DataError, match=r"^Row 2 of .*unknown role"):
        dataset(file, processor, Questions)[2]
    skipping = dataset(file, processor, Questions, on_error="skip")
    assert [skipping[i].sample_id for i in range(len(skipping))] == [0, 0, 0]


def test_files_without_rows_are_refused(tmp_path, write):
    with pytest.raises(DataError, match="does not exist"):
        FileRows(split_of(tmp_path / "none.json"))
    for content in ("{", "{}", "[]", json.dumps("rows")):
        file = tmp_path / "bad.json"
        file.write_text(content)
        with pytest.raises(
            DataError, match=r"bad\.json (is not valid JSON|must hold a JSON array)"
        ):
            FileRows(split_of(file))
    assert len(FileRows(split_of(write([row(0), row(1)]), rows=1))) == 1


def test_long_rows_are_cut_to_what_llava_trains_on(write, processor):
    text = row(0, human("hi"), gpt("ho"), human("hi"), gpt("one two three four five six"))
    rows = [
        text,
        row(1, human("hi " * 99), gpt("ho")),
        row(2, human("hi " * 40), gpt("ho"), SEEN, gpt("red"), image="red.png"),
    ]
    file = write(rows)
    whole = dataset(file, processor, max_length=9999)[0]
    most = len(whole.input_ids) - 3
    cut = dataset(file, processor, max_length=most, too_long="cut")
    assert (cut[0].input_ids, cut[0].labels) == (whole.input_ids[:most], whole.labels[:most])
    with pytest.raises(DataError, match=r"Row 1 .*: no answer begins within the first \d+ ids"):
        cut[1]
    with pytest.raises(DataError, match=r"Row 2 .*: an image comes after the first \d+ ids"):
        cut[2]
    with pytest.raises(DataError, match=r"Row 0 .*the maximum is \d+; raise `data.max_length`"):
        dataset(file, processor, max_length=most)[0]
