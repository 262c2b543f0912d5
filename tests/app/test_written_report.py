"""What `dpn.report` writes: the page, what stands beside it, and its command line."""

import csv
import io
import itertools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console

from dpn import report
from dpn.common.files import add_row, read_json, read_rows, write_json
from dpn.common.table import Table, markdown, terminal
from dpn.common.text import code_span, markdown_image
from dpn.config.compose import compose
from dpn.reports.comparison import compare
from dpn.reports.drawing import COLOURS
from dpn.reports.figures import draw
from dpn.reports.page import write_report
from dpn.reports.publish import write_comparison, write_csv
from dpn.train import train
from tests.app.conftest import tiny_run
from tests.app.run_folders import set_status, write_run, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return compare([write_sweep(tmp_path_factory.mktemp("sweep"))])


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    return write_comparison(sweep, tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """Tags and visible text of a page, and the numbers of its charts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.charts, self._in = [], "", {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._in = dict(attributes).get("data-chart", "-") if tag == "script" else ""

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "":
            self.text += data
        elif self._in != "-":
            self.charts[self._in] = json.loads(data)


def test_the_page_shows_the_numbers_of_the_runs(written):
    page = Page(written.read_text())
    marks = {trace["name"]: trace for trace in page.charts["accuracy_macs"]["data"]}
    assert marks["router=dpe"]["x"] == pytest.approx([0.5, 0.8])
    assert marks["router=dpe"]["y"] == [0.75, 0.75]
    assert marks["router=static"]["y"] == [0.25]
    assert marks["no method is better in both"]["x"] == pytest.approx([0.4, 0.5])
    times = {trace["name"]: trace for trace in page.charts["accuracy_time"]["data"]}
    assert times["router=static"]["x"] == pytest.approx([1.65])
    assert times["router=static"]["error_x"]["array"] == pytest.approx([0.1 / 2**0.5])
    assert len(page.charts["curve_loss_language"]["data"]) == 8
    assert page.charts["curve_loss_language"]["data"][1]["y"] == pytest.approx([3, 2, 5 / 3])
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4 * 3  # a panel for the image and one for each change
    assert all(image["alt"] and image["src"].startswith("data:image/webp") for image in images)
    assert "route in words" in page.text
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert {f"#{a['id']}" for tag, a in page.tags if tag == "section"} == links - {"#left-out"}
    used = {a.get("src", a.get("href", "")) for tag, a in page.tags if tag != "a"}
    assert not [address for address in used if address and not address.startswith("data:")]


@pytest.mark.slow
def test_a_curve_of_one_value_is_seen(tmp_path):
    add_row(write_run(tmp_path / "run") / "curves.jsonl", {"step": 3, "val/loss": 1.0})
    charts = Page(write_comparison(compare([tmp_path]), tmp_path / "report").read_text()).charts
    modes = [charts[f"curve_{name}"]["data"][0]["mode"] for name in ("loss_language", "val_loss")]
    assert modes == ["lines", "lines+markers"]
    picture = imread(tmp_path / "report" / "figures" / "curve_val_loss.png")[..., :3]
    plot = picture[len(picture) // 8 :]  # without the legend, which has the mark, too
    assert np.isclose(plot, to_rgb(COLOURS[0]), atol=0.01).all(axis=-1).sum() > 20


def test_what_stands_beside_the_page(sweep, written):
    text = (written.parent / "report.md").read_text()
    assert "| router=static keep=0.4 | 2 | 0.250 ± 0.000 |" in text
    links = re.findall(r"\]\((.*?)\)", text)
    assert len(links) >= 1
    for link in links:
        assert (written.parent / link).stat().st_size > 1000
    with (written.parent / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(sweep.runs)
    for row in lines:
        metrics = read_json(Path(row["folder"]) / "metrics.json")
        assert float(row["val/accuracy"]) == metrics["val/accuracy"]


def test_nothing_from_a_run_becomes_markup(tmp_path):
    bad = "<script>alert(1)</script>|$x$ %{y}"
    write_run(tmp_path / "a", typed=(f"router={bad}",), prompt=bad)
    write_run(tmp_path / "b", router=bad, typed=())
    failed = write_run(tmp_path / "c", seed=2)
    set_status(failed, "failed", error=bad)
    text = write_comparison(compare([tmp_path]), tmp_path / "report").read_text()
    assert "<script>alert" not in text
    page = Page(text)
    assert page.text.count(bad) >= 4  # method, prompt, setting, error
    names = [trace["name"] for trace in page.charts["accuracy_macs"]["data"]]
    assert "router=&lt;script&gt;alert(1)&lt;/script&gt;|$x$ %{y}" in names
    assert "<script" not in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize("start", ["=LINK(1)", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "\n=1"])
def test_no_cell_is_a_formula(start, tmp_path):
    run = write_run(tmp_path / f"{start.strip()} run", typed=(f"{start}=2",))
    set_status(write_run(tmp_path / "b", seed=1), "failed", error=f"{start}()")
    metrics = read_json(run / "metrics.json")
    write_json(run / "metrics.json", {**metrics, f"{start}": -0.5})
    write_csv(compare([tmp_path]), tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert "-0.5" in cells  # numbers stay numbers
    assert not [c for c in cells if c.strip(" ")[:1] in tuple("=+-@\t\r") and c not in ("", "-0.5")]


def test_headings_and_links_of_markdown_are_text(tmp_path):
    bad = "<script>alert(1)</script> [x](javascript:alert(1)) `"
    page = Table(bad, (bad,), ((bad,),), note=bad).markdown()
    assert "<script" not in page
    assert "[x](" not in page
    assert markdown_image("a](b) [c", "d e)") == "![a)(b) (c](d%20e%29)"
    assert markdown([["a|b\\|c"], ["[1, 2]"]]) == "| a\\|b\\\\\\|c |\n| --- |\n| [1, 2] |\n"
    assert code_span("a `` b") == "``` a `` b ```"
    run = write_run(tmp_path / "a<b> [x](y)")
    set_status(run, "finished", command="python <b>`<i>`")
    text = write_report(run).read_text()
    assert "# a&lt;b> [x]\\(y)" in text
    assert "`` python <b>`<i>` ``" in text
    links = re.findall(r"^!\[.*?\]\((.*?)\)$", text, re.MULTILINE)
    assert links
    assert all((run / unquote(link)).is_file() for link in links)


def test_words_of_data_are_not_formulas_of_pictures(tmp_path):
    """An odd number of `$`, or a bad formula between two, fails where it is read as one."""
    rows = [
        {**row, "family": "$\\frac{$"}
        for row in read_rows(write_run(tmp_path / "a") / "rows.jsonl")
    ]
    assert len(draw(rows, tmp_path)) > 1


def test_nothing_is_read_as_markup_of_the_terminal():
    odd = ("router.routers=[fastv,vtw]", "[/b]", "[bold]", ":smile:", "\x1b[2J", "\ud800")
    file = io.StringIO()
    Table("t [/x]", ("a [/x]",), tuple((cell,) for cell in odd), "n [/x]").show(Console(file=file))
    console = terminal(file=file)
    console.print("[/b] :smile:")
    shown = file.getvalue()
    assert all(text in shown for text in ("t [/x]", "a [/x]", "n [/x]", *odd[:4]))
    assert shown.count("[/b]") == shown.count(":smile:") == 2
    assert "\x1b" not in shown
    shown.encode()


def test_one_place_makes_consoles():
    """So that text is read as markup nowhere."""
    root = Path(report.__file__).parent
    files = [*root.rglob("*.py"), *(root.parent / "tools").glob("*.py")]
    makers = [path for path in files if re.search(r"\bConsole\(", path.read_text())]
    assert [path.name for path in makers] == ["table.py"]


@pytest.mark.slow
def test_pictures_are_read_as_far_as_they_can(tmp_path, monkeypatch, caplog):
    damaged = write_run(tmp_path / "a") / "figures" / "overlays" / "held_out-00.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    write_run(tmp_path / "b", "dpe")
    page = Page(write_comparison(compare([tmp_path]), tmp_path / "report").read_text())
    assert f"{damaged} cannot be read" in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3
    monkeypatch.setattr("dpn.reports.html.BYTES", 100)
    page = Page(write_comparison(compare([tmp_path]), tmp_path / "report").read_text())
    assert "img" not in [tag for tag, _ in page.tags]
    assert "leaves pictures out" in caplog.text


def test_only_damaged_runs(tmp_path):
    (write_run(tmp_path / "a") / "metrics.json").unlink()
    page = Page(write_comparison(compare([tmp_path]), tmp_path / "report").read_text())
    assert "metrics.json is missing." in page.text


@pytest.mark.slow
def test_report_of_real_runs(squares, tmp_path):
    for router, seed in itertools.product(("none", "dpe"), (0, 1)):
        further = [f"router={router}", f"seed={seed}", "overlays=2"]
        train(compose("train", [*tiny_run(squares, tmp_path), *further]))
    found = compare([tmp_path])
    assert [(p.method, len(p.runs)) for p in found.points] == [
        ("router=dpe", 2),
        ("router=none", 2),
    ]
    page = Page(write_comparison(found, tmp_path / "report").read_text())
    for chart in (
        "accuracy_macs",
        "accuracy_time",
        "kept",
        "curve_loss_language",
        "curve_val_loss",
    ):
        assert {trace["meta"] for trace in page.charts[chart]["data"]} >= {*found.methods}
    titles = [a["alt"].partition(" of: ")[0] for tag, a in page.tags if tag == "img"]
    assert titles.count("image") == 4  # two of each method's first run
    assert "layer 0: 16 rows" in titles
    assert "Which colour?" in page.text


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    report.main()


def test_command_line(monkeypatch, tmp_path, capsys):
    (write_run(tmp_path / "runs" / "a") / "metrics.json").unlink()
    command(monkeypatch, tmp_path / "runs")
    page = tmp_path / "runs" / "report" / "report.html"
    assert page.exists()
    assert f"Report: {page}" in capsys.readouterr().out
    for wrong, code, sentence in (
        ([], 2, "there is nothing to report"),
        (["nowhere"], 1, "nowhere is not a folder"),
        ([tmp_path, "too=x"], 2, "`too` is not a setting"),
        (["run=nowhere"], 1, "nowhere holds no results"),
    ):
        with pytest.raises(SystemExit) as ended:
            command(monkeypatch, *wrong)
        assert ended.value.code == code
        assert sentence in capsys.readouterr().err
