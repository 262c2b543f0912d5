"""The configs of LLaVA's two data sets, and their check, on tiny files of the same formats."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from dpn.config import build
from dpn.config.compose import compose
from dpn.data.tokenizer import train_tokenizer
from dpn.model import DPNProcessor
from tools.check_data import Report, findings, main


def row(number, question, answer, image=None):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    extra = {"model": ""} if image is None else {"image": image}
    return {"id": number, **extra, "conversations": turns}


GOOD = [
    row("000000033471", "<image>\nWhat is it?", "A red square.", "coco/train2017/000000033471.jpg"),
    row(1, "What is it?\n<image>", "A red square.", "ocr_vqa/images/1.jpg"),
    row("wgByO4Y_0", "How are you?", "Fine, and you?"),
    row("long", "Tell me all.", "All. " * 3000),
    {
        "id": "WLqSUbY_0",
        "model": "",
        "conversations": [
            {"from": "gpt", "value": "Hello!"},
            {"from": "human", "value": "Hello!"},
            {"from": "gpt", "value": "Hello again!"},
        ],
    },
]
BAD = [
    row("missing", "<image>\nWhat is it?", "A square.", "ocr_vqa/images/gone.jpg"),
    row("empty file", "<image>\nWhat is it?", "A square.", "vg/VG_100K_2/2.jpg"),
    row("outside", "<image>\nWhat is it?", "A square.", "../2.jpg"),
    row("no answer", "How are you?", ""),
    row("two problems", "What is it?", "A square.", "ocr_vqa/images/gone.jpg"),
    "no mapping",
]


@pytest.fixture
def data_root(tmp_path):
    for path in ("coco/train2017/000000033471.jpg", "LLaVA-Pretrain/images/00453/004539375.jpg"):
        (tmp_path / path).parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), "red").save(tmp_path / path)
    for folder in ("ocr_vqa/images", "vg/VG_100K_2"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("P", (30, 40)).save(tmp_path / "ocr_vqa/images/1.gif")
    (tmp_path / "vg/VG_100K_2/2.jpg").touch()
    captions = [row("004539375", "Describe it.\n<image>", "a red wall", "00453/004539375.jpg")]
    write(tmp_path / "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", captions * 3)
    write(tmp_path / "llava_v1_5_mix665k.json", GOOD + BAD)
    return tmp_path


def write(file, rows):
    file.write_text(json.dumps(rows))


@pytest.fixture
def processor():
    return DPNProcessor(train_tokenizer(["What is it? A red square. All."]), image_size=28)


def data_module(choice, data_root, processor, *overrides):
    folders = [f"paths.data_root={data_root}", "data.num_workers=0", "data.batch_size=1"]
    config = compose("train", [f"data={choice}", *folders, *overrides]).config
    data = build.data_module(config.data)
    assert data.source.check() == []
    data.processor = processor
    return data


def test_captions_are_trained_as_image_and_caption(data_root, processor):
    batches = list(data_module("lcs_558k", data_root, processor).train_dataloader())
    assert len(batches) == 3
    ids, labels = batches[0].input_ids[0].tolist(), batches[0].labels[0]
    assert ids[1] == processor.image_token_id
    assert processor.tokenizer.decode(labels[labels != -100]) == "a red wall\n"


def test_the_instruction_mix_is_read_with_all_its_oddities(data_root, processor):
    data = data_module("llava_665k", data_root, processor, "data.group=none")
    batches = list(data.train_dataloader())
    ids = {meta["id"] for batch in batches for meta in batch.meta}
    assert ids == {str(row["id"]) for row in GOOD}
    assert max(batch.input_ids.shape[1] for batch in batches) == 2048  # longer samples are cut
    assert [number for _, number in sorted(data.skipped)] == list(range(5, 11))


def test_check_counts_sources_and_problems(data_root, processor):
    source = data_module("llava_665k", data_root, None).source
    split = source.split("train")
    report = Report(examples=2)
    for finding in findings(source, split, None):
        report.add(finding)
    assert (report.rows, report.bad) == (11, 6)
    assert report.sources == {"no image": 5, "ocr_vqa": 3, "coco": 1, "vg": 1, "..": 1}
    assert report.problems == {
        "missing image": 2,
        "bad conversation": 3,
        "corrupt image": 1,
        "image outside of the folder": 1,
    }
    assert report.remarks == {"image of one colour": 2}
    assert report.shown["corrupt image"] == [
        f"row 6, id empty file: image {data_root / 'vg/VG_100K_2/2.jpg'} is corrupt: the file is"
        " empty; download it again."
    ]
    assert "the answer in turn 2 is empty" in report.shown["bad conversation"][0]
    assert len(report.shown["bad conversation"]) == 2  # the number of examples
    assert report.longest == [(3003, -3, "long"), (7, 0, "000000033471")]


def test_check_groups_pictures_and_shows_any_metadata(tmp_path, monkeypatch, capsys):
    rows = []
    for number in range(30):
        place = f"{number}.png" if number < 8 else f"folder {number}/x.png"
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").save(tmp_path / place)
        rows.append(row(["[/b]", "\ud83d", {"a": 1}][number % 3], "<image>\nq", "a", place))
    rows[0] |= {"family": ["x"], "difficulty": "hard"}
    Image.new("RGBA", (4, 4)).save(tmp_path / "1.png")
    write(tmp_path / "rows.json", rows)
    files = [f"data.train_file={tmp_path}/rows.json", f"data.image_root={tmp_path}"]
    line = ["data=llava_json", *files, "data.num_workers=0"]
    monkeypatch.setattr(sys, "argv", ["check_data.py", *line])
    main()
    printed = capsys.readouterr().out
    assert "All rows are fine." in printed
    assert "[/b]" in printed
    assert "wholly transparent image: 1" in printed
    shown = [line.split("│")[1:3] for line in printed.splitlines() if "│" in line]
    counts = {name.strip(): count.strip() for name, count in shown}
    assert counts["."] == "8"
    assert counts["3 others"] == "3"


def test_check_measures_in_ids_and_finds_rows_that_are_too_long(data_root, processor):
    source = data_module("llava_665k", data_root, None, "data.too_long=refuse").source
    found = list(findings(source, source.split("train"), processor))
    assert [kind for kind, _ in found[3].problems] == ["bad conversation"]
    assert "the maximum is 2048" in found[3].problems[0][1]
    sample = data_module("llava_665k", data_root, processor).train_dataloader().dataset[0]
    assert found[0].length == len(sample.input_ids)


@pytest.mark.parametrize(("rows", "code"), [(GOOD, None), (GOOD + BAD, 1)])
def test_check_command(rows, code, data_root, monkeypatch, capsys):
    write(data_root / "llava_v1_5_mix665k.json", rows)
    line = ["data=llava_665k", f"paths.data_root={data_root}", "data.num_workers=2"]
    monkeypatch.setattr(sys, "argv", ["check_data.py", *line])
    if code is None:
        main()
        assert "All rows are fine." in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        printed = capsys.readouterr()
        assert "missing image: 2" in printed.out
        assert "6 of 11 rows are bad." in printed.err


@pytest.mark.slow
def test_own_data_with_any_metadata_go_through_a_whole_run(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "a.png")
    odd = [("a", "easy"), (["a"], "hard"), (1, 2), (True, [1]), (None, 1e308), (float("nan"), {})]
    rows = [
        row(number, "<image>\nWhat is it?", f"grey {number}", "a.png")
        | {"family": odd[number % 6][0], "difficulty": odd[number % 6][1]}
        for number in range(36)
    ]
    write(tmp_path / "own.json", rows)
    files = ["data.train_file=own.json", "data.val_file=own.json", "data.image_root=."]
    line = ["debug=fast", "data=llava_json", *files, "data.num_workers=1"]
    command = [sys.executable, "-m", "dpn.train", *line]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (answers,) = tmp_path.glob("outputs/main/*/rows.jsonl")
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert {one["family"] for one in found} == {"a", '["a"]', "1", "true", None}
    assert {one["difficulty"] for one in found} == {"easy", "hard", 2, "[1]", "1e+308", "{}"}
    assert len(found) == 12
    assert "| true |" in answers.with_name("report.md").read_text()
