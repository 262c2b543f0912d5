import logging
import sys
from contextlib import closing

from dpn.common.progress import Bar, progress


def test_without_a_terminal_there_are_ten_lines(caplog, capsys):
    caplog.set_level(logging.INFO)
    assert list(progress(range(50), "asking", unit="questions")) == [*range(50)]
    assert len(caplog.messages) == 10
    assert caplog.messages[0].startswith("asking 5/50  ")
    assert "questions/s" in caplog.messages[0]
    assert capsys.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar_beside_the_output(caplog, capsys, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for step in progress(range(2), "asking"):
        print("step", step)
    with closing(Bar("indexing", 9, drawn=False)) as hidden:
        hidden.move(3)
    out, err = capsys.readouterr()
    assert out == "step 0\nstep 1\n"  # stdout may be a file
    assert "asking" in err
    assert "2/2" in err
    assert "indexing" not in err
    assert not caplog.messages
