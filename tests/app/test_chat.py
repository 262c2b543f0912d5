"""The command `python -m dpn.chat` with lines on its standard input."""

import io
import sys

import numpy as np
import pytest

from dpn import chat, generate, inference, route
from dpn.common.table import terminal
from dpn.common.text import answer_text
from dpn.dialogue import Chat
from dpn.reports.route import Route
from dpn.reports.route_terminal import print_route
from tests.talkers import make_run, make_talker, picture

NEW = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    router = {"name": "dpe", "layers": [0, 2], "min_rows": 1}
    return make_run(tmp_path_factory.mktemp("run"), router)


@pytest.fixture
def say(monkeypatch, capsys):
    """Run the command with lines on its standard input; return its output, errors and exit code."""

    def say(lines, *arguments, typed=False):
        given = " ".join(map(str, arguments))
        usual = [] if "max_new_tokens" in given else [f"max_new_tokens={NEW}"]
        monkeypatch.setattr(sys, "argv", ["chat", *usual, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: typed, raising=False)
        code = 0
        try:
            chat.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return out.split("\n"), err, code

    return say


def shown(found):
    """Return the printed lines of an answer."""
    route = ", ".join(f"layer {layer}: {kernel}" for layer, kernel in found["route"].items())
    share = f"{found['visual_macs_ratio']:.3f} of the visual MACs" if found["base_rows"] else ""
    return [*found["answer"].split("\n"), f"[{route or 'no route'}; {share or 'no image'}]"]


def test_another_router(say, folder):
    talk = Chat(*inference.load(folder, "cpu", router="fastv", keep=0.5), NEW)
    want = shown(talk.ask("What?", [picture(0)])) + shown(talk.ask("Sure?"))
    command = (f"run={folder}", f"image={folder / '0.png'}")
    assert say(["What?", "Sure?"], *command, "router=fastv", "keep=0.5")[0][: len(want)] == want
    _, errors, code = say(["What?"], *command, "keep=0.5")
    assert "`router=dpe` meets keep=0.5 by a price" in errors
    assert code == 1


def test_answers_equal_those_of_the_chat_class(say, folder):
    talk = Chat(*inference.load(folder, "cpu"), NEW)
    want = shown(talk.ask("What?", [picture(0)])) + shown(talk.ask("Sure?"))
    for images in ([picture(0)], [picture(1)], [picture(0), picture(1)], []):
        talk.reset()
        want += shown(talk.ask("What?", images))
    zero, one = folder / "0.png", folder / "1.png"
    lines = ["What?", "", " Sure? ", "/new", "What?", f"/image {one}", "What?"]
    lines += [f"/image {zero},{one}", "What?", "/image", "What?", "/quit", "What?"]
    out, err, code = say(lines, f"run={folder}", f"image={zero}")
    assert [line.rstrip() for line in out] == [*want, ""]
    assert (err, code) == ("", 0)
    assert say(["What?"], f"run={folder / 'model'}")[0][:-1] == want[-2:]


def test_an_empty_answer_is_named():
    assert answer_text(" \n") == "(empty answer)"
    assert answer_text("red") == "red"
    route = Route("What?", "", (), [np.zeros((4, 4, 3), np.uint8)], [])
    print_route(route, terminal(file=(file := io.StringIO())))
    assert "A: (empty answer)" in file.getvalue()


def test_a_mistake_prints_a_sentence_and_the_conversation_continues(say, folder):
    talk = Chat(*inference.load(folder, "cpu"), NEW)
    want = shown(talk.ask("What?", [picture(0)])) + shown(talk.ask("Sure?"))
    lines = ["What?", "/imgae x", "/image no.png", f"/image {folder / 'broken.png'}"]
    out, err, code = say(
        [*lines, "</s>", "<image>", "Sure?"], f"run={folder}", f"image={folder / '0.png'}"
    )
    assert [line.rstrip() for line in out] == [*want, ""]
    sentences = err.splitlines()
    assert len(sentences) == 5
    for part, sentence in zip(
        (
            "/imgae is not a command; use /image FILE, /new or /quit.",
            "image=no.png does not exist",
            "broken.png is corrupt",
            "reserved token </s>",
            "<image> stands in a later turn",
        ),
        sentences,
        strict=True,
    ):
        assert part in sentence
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (["run=/no/where"], "run=/no/where holds no model", 1),
        (["rum=3", "device=tpu"], "did you mean `run`?", 2),
        (
            ["run=.", "max_new_tokens=0"],
            "`max_new_tokens=0` is not possible",
            2,
        ),
        (["run=.", "temperature=-1"], "`temperature=-1` is not possible", 2),
        (["run=.", "image=no.png"], "image=no.png does not exist", 1),
        (["run=FOLDER", "device=cuda:99"], "device=cuda:99, but torch finds", 1),
    ],
)
def test_bad_arguments(say, folder, arguments, sentence, code):
    given = [argument.replace("FOLDER", str(folder)) for argument in arguments]
    out, err, ended = say(["What?"], *given)
    assert sentence in err
    assert "Traceback" not in err
    assert (out, ended) == ([""], code)


def test_input_that_is_not_utf8_is_refused(say, folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chat", f"run={folder}"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What\xff?\n"), "utf-8"))
    with pytest.raises(SystemExit):
        chat.main()
    assert "not UTF-8 text" in capsys.readouterr().err


def test_a_terminal_shows_the_commands(say, folder):
    out, _, _ = say(["/quit"], f"run={folder}", typed=True)
    assert out[0] == "Type a question, or /image FILE, /new or /quit."
    assert out[1] == "> "


def test_seed_of_the_sampling(say, folder):
    answers = [
        say(["What?"], f"run={folder}", "temperature=2", f"seed={seed}")[0][0] for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.fixture
def silent(monkeypatch):
    """Commands find a model that ends every answer at once."""
    model, processor = make_talker()
    end = processor.tokenizer.eos_token_id
    model.generation_config.suppress_tokens = [i for i in range(processor.vocab_size) if i != end]
    monkeypatch.setattr(inference, "load", lambda *_: (model, processor))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_that_an_answer_is_empty(terminal, silent, say, folder, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    shown = "(empty answer)" if terminal else ""
    assert say(["What?"], "run=RUN")[0][0].strip() == shown
    out = io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["generate", "run=RUN", "prompt=What?"])
    generate.main()
    assert out.getvalue().splitlines()[0] == shown
    (found,) = route.route("RUN", str(folder / "0.png"), "What?")
    assert found.answer == ""


def test_names_of_files_may_have_commas(folder):
    picture(0).save(folder / "a,b.png")
    comma, plain = str(folder / "a,b.png"), str(folder / "0.png")
    for names, count in ((comma, 1), (f"{plain},{comma}", 2), (f"{comma},{plain},{comma}", 3)):
        assert len(inference.read_images(names)) == count
    with pytest.raises(FileNotFoundError, match=r"image=no\.png does not exist"):
        inference.read_images(f"{comma},no.png")
