"""The command `python -m dpn.route`: what it says about routes, and how it draws them."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dpn import inference, route
from dpn.inference.routes import trace_route
from dpn.reports.route import LayerChoice, Route, RouteStep, draw_routes
from dpn.reports.route_terminal import half_blocks, pool, print_route
from tests.talkers import make_run, make_talker, picture

DPE = {"name": "dpe", "layers": [0, 2], "min_rows": 1}
NEW = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), DPE)


@pytest.fixture
def ask(monkeypatch, capsys):
    """Run the command; return its output, errors and exit code."""

    def ask(*arguments):
        given = " ".join(map(str, arguments))
        usual = [] if "max_new_tokens" in given else [f"max_new_tokens={NEW}"]
        monkeypatch.setattr(sys, "argv", ["route", *usual, *map(str, arguments)])
        code = 0
        try:
            route.main()
        except SystemExit as end:
            code = end.code
        return *capsys.readouterr(), code

    return ask


def test_another_router(ask, folder):
    """Gates that do not act draw no probabilities."""
    command = (f"run={folder}", f"image={folder / '0.png'}", "prompt=What?")
    output, _, code = ask(*command, "router=none")
    assert code == 0
    assert "router=none keeps all rows" in " ".join(output.split())
    output, _, _ = ask(*command, "router=fastv", "keep=0.5")
    assert "router=fastv keeps rows by a fixed rule" in " ".join(output.split())
    _, errors, code = ask(*command, "router=chain", "keep=0.5")
    assert "`keep=0.5` cannot be met with router=chain" in errors
    assert code == 1


def test_probabilities_are_those_of_the_gates():
    model, processor = make_talker(DPE)
    logits = {}
    for layer, gate in model.router.gates.items():
        gate.register_forward_hook(lambda *args, layer=layer: logits.update({layer: args[2]}))
    found = trace_route(model, processor, "What?", [picture()], NEW)
    wanted = inference.ask(model, processor, "What?", [picture()], NEW)
    assert (found.question, found.answer) == ("What?", wanted["answer"])
    choices = [choice for step in found.steps for choice in step.choices]
    assert [choice.title for choice in choices] == ["layer 0", "layer 2"]
    for choice, layer in zip(choices, ("0", "2"), strict=True):
        chances = (logits[layer][0] / 10).exp()
        assert list(choice.probs) == ["1x1", "1x2", "2x2"]
        chances = (chances / chances.sum()).tolist()
        assert list(choice.probs.values()) == pytest.approx(chances)
        assert choice.chosen == wanted["route"][layer] == max(choice.probs, key=choice.probs.get)
    titles = [f"into layer {n}: {wanted['rows'][n]} of 16 rows" for n in (0, 1, 3)]
    assert [step.title for step in found.steps] == titles
    assert "decides by these probabilities." in found.remarks[0]


def test_the_price_is_printed():
    model, processor = make_talker({**DPE, "keep": 0.6})
    model.router.price.fill_(0.25)
    (remark,) = trace_route(model, processor, "What?", [picture()], NEW).remarks
    assert "a price on rows (0.25) calibrated for router.keep=0.6" in remark


BY_CHANCES = "decides by these probabilities."


@pytest.mark.parametrize(
    ("router", "sentence"),
    [
        ({"name": "none"}, "router=none keeps all rows"),
        ({"name": "neighbor_attention"}, "keeps all rows"),
        ({"name": "fastv", "keep": 0.7}, "by a fixed rule, without probabilities"),
        ({"name": "vtw", "k": 2}, "by a fixed rule, without probabilities"),
        (
            {"name": "static", "layers": [0], "kernels": [[2, 2]], "min_rows": 1},
            "decides by these probabilities.",
        ),
        ({"name": "dyvte", "hidden": 8}, BY_CHANCES),
        ({"name": "random", "layers": [1], "min_rows": 1}, BY_CHANCES),
        (
            {"name": "depth_routing", "layers": [1, 2], "threshold": 0.5},
            "decides by these probabilities.",
        ),
    ],
)
def test_every_method_is_described(router, sentence):
    model, processor = make_talker(router)
    images = [picture(0), picture(1)]
    found = trace_route(model, processor, "Same?", images, NEW)
    rows = inference.ask(model, processor, "Same?", images, NEW)["rows"]
    assert sentence in found.remarks[0]
    shown = dict.fromkeys(range(4))
    for step in found.steps:
        words, _, count = step.title.partition(": ")
        shown[int(words.split()[-1])] = int(count.split()[0])
    for layer, count in shown.items():
        assert rows[layer] == (rows[layer - 1] if count is None else count)


CHOICES = (LayerChoice("layer 0", {"1x1": 0.1, "2x2": 0.9}, "2x2"),)
OWNERS = [np.array([[0, 1], [2, 3]]), np.array([[0, 0], [-1, 1]])]
PIXELS = np.kron(
    np.array([[[200, 0, 0], [100, 0, 0]], [[0, 0, 90], [0, 80, 0]]]), np.ones((4, 4, 1))
).astype(np.uint8)


def example(*further):
    steps = [
        RouteStep("into layer 0: 4 of 4 rows", OWNERS[:1]),
        RouteStep("into layer 1: 2 of 4 rows", OWNERS[1:], CHOICES),
        *further,
    ]
    return Route("Q" * 90, "$A\x15$", ["why"], [PIXELS], steps)


def test_pooled_cells_have_their_mean_colour_and_dropped_ones_are_grey():
    pooled = pool(PIXELS, OWNERS[1]).tolist()
    assert pooled == [[[150, 0, 0]] * 2, [[110] * 3, [0, 80, 0]]]


def test_a_character_shows_two_pixels():
    text = half_blocks(pool(PIXELS, OWNERS[0]), 2)
    assert text.plain == "▀▀"
    styles = ["rgb(200,0,0) on rgb(0,0,90)", "rgb(100,0,0) on rgb(0,80,0)"]
    assert [span.style for span in text.spans] == styles
    wide = half_blocks(pool(PIXELS, OWNERS[0]), 8)
    assert [len(line) for line in wide.plain.split("\n")] == [8] * 4


@pytest.mark.parametrize("width", [20, 60])
def test_the_output_fits_the_width_of_the_terminal(width):
    out = io.StringIO()
    colour = Console(file=out, width=width, color_system="truecolor", force_terminal=True)
    print_route(example(), colour)
    plain = Console(file=io.StringIO(), width=width)
    with plain.capture() as captured:
        print_route(example(), plain)
    assert out.getvalue().count("▀") == 3 * min(24, width) * round(min(24, width) / 2)
    assert "▀" not in captured.get()  # no colours, no pictures
    assert max(map(len, captured.get().split("\n"))) <= width
    lines = [line.strip() for line in captured.get().split("\n")]
    assert "2x2 ███████████ 0.90" in captured.get()
    assert any("◀" in line for line in lines)


def test_an_empty_answer_is_said():
    out = io.StringIO()
    print_route(replace(example(), answer=""), Console(file=out, width=60))
    assert "A: (empty answer)" in out.getvalue()


def test_figure_has_bars_as_long_as_their_probability(tmp_path):
    path = tmp_path / "deep" / "route.png"
    less = RouteStep("", OWNERS[1:], [LayerChoice("layer 2", {"1x1": 0.7, "2x2": 0.3}, "2x2")])
    draw_routes([example(less)], path)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for colour in ((255, 0, 255), (110, 110, 110)):  # frames, and dropped cells
        assert (pixels == colour).all(-1).any()
    chosen = (pixels == (11, 60, 111)).all(-1).any(0)
    edges = np.flatnonzero(np.diff(chosen.astype(int)))
    long, short = np.diff(edges)[::2]
    assert long == pytest.approx(3 * short, rel=0.03)


def test_the_command_writes_or_prints(ask, folder, tmp_path):
    asked = [f"run={folder}", f"image={folder / '0.png'}", "prompt=What, then?"]
    out, err, code = ask(*asked)
    assert (err, code) == ("", 0)
    assert out.startswith("Q: What, then?\nA: ")
    assert all(part in out for part in ("layer 0", "layer 2", "2x2", "◀ chosen"))
    path = tmp_path / "route.png"
    assert ask(*asked, f"to={path}") == (f"wrote {path}\n", "", 0)
    assert Image.open(path).format == "PNG"


@pytest.mark.slow
def test_several_questions_are_drawn_one_above_another(ask, folder, tmp_path):
    """Each as it would be alone, and in one figure."""
    image = f"image={folder / '0.png'}"
    alone = [ask(f"run={folder}", image, f"prompt={q}")[0] for q in ("What?", "Where, then?")]
    listed = "prompt=[What?,'Where, then?']"
    out, err, code = ask(f"run={folder}", image, listed)
    assert (err, code) == ("", 0)
    first, rule, second = out.partition("─" * 80 + "\n")
    assert rule
    assert [first, second] == alone
    heights = []
    for prompt in ("prompt=What?", listed):
        ask(f"run={folder}", image, prompt, f"to={tmp_path / 'route.png'}")
        heights.append(Image.open(tmp_path / "route.png").height)
    assert heights[1] == pytest.approx(2 * heights[0], abs=1)


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        ([], "`run` is missing", 2),
        (["run=/no/where"], "run=/no/where holds no model", 1),
        (["run=.", "promt=x"], "did you mean `prompt`?", 2),
        (["run=.", "prompt= "], "`prompt=` is empty", 2),
        (["run=.", "prompt=[]"], "`prompt` is empty", 2),
        (["run=.", "prompt=[a],[b]"], "cannot be read as a list", 2),
        (["run=.", "prompt=[What?,]"], "cannot be read as a list; put quotes around", 2),
        (["run=.", "image="], "`image=` is empty", 2),
        (["run=.", "image=no.png"], "image=no.png does not exist", 1),
        (["run=.", "image=BROKEN"], "broken.png is corrupt", 1),
        (
            ["run=.", "to=route.jpg"],
            "`to=route.jpg` is not possible; it must be a file name that",
            2,
        ),
        (["run=.", "max_new_tokens=0"], "it must be at least 1", 2),
    ],
)
def test_bad_arguments(ask, folder, arguments, sentence, code):
    usual = {"image": folder / "0.png", "prompt": "What?"}
    given = [a.replace("BROKEN", str(folder / "broken.png")) for a in arguments]
    named = {argument.partition("=")[0] for argument in given}
    out, err, ended = ask(*given, *(f"{k}={v}" for k, v in usual.items() if k not in named))
    assert sentence in err
    assert "Traceback" not in err
    assert (out, ended) == ("", code)
