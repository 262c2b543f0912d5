"""Vectors that the official evaluators gave when run."""

import pytest

from dpn.benchmarks._answers import evalai, uploaded
from dpn.metrics.normalisation import _CONTRACTIONS, punctuation, vqa_eval


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("The Cat's hat.", "cat 's hat"),
        ("two, three", "2 3"),
        ("1,000", "1000"),
        ("a.m.", "am"),
        ("U.S.A", "usa"),
        ("yes-no", "yes no"),
        ("it's", "it 's"),
        ("IT'S", "it 's"),
        ("3.5", "3.5"),
        ("5,000 - 6,000", "5000 6000"),
        ("10:30 a.m.", "10:30 am"),
        ("none", "0"),
        ("dont", "don't"),
        (" A\nred\tdog ", "red dog"),
        ("", ""),
    ],
)
def test_evalai(answer, form):
    assert evalai(answer) == form


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("The Cat's hat.", "cat's hat"),
        ("What?", "what"),
        ("1,000", "1000"),
        ("two, three", "2 3"),
        ("red,blue", "red blue"),
        ("\nTen\tDogs", "10 dogs"),
    ],
)
def test_vqa_eval(answer, form):
    assert vqa_eval(answer) == form


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a-b", "a b"),
        ("a-b -c", "ab c"),  # beside a blank somewhere: all of them go
        ("a-b;c ;d", "a bc d"),  # each kind of mark for itself
        ("1,000-2", "10002"),  # a comma between digits: all marks go
        ("What?", "What "),
        ("a:b'c", "a:b'c"),  # no marks
        ("1. 2.5", "1 2.5"),
        ("." * 40, "." * 8),  # no more than 32
    ],
)
def test_punctuation(text, left):
    assert punctuation(text) == left


def test_the_other_rule_changes_nothing_after_evalai():
    """VizWiz's evaluator, which applies the other rule to uploads, need not be repeated."""
    for answer in ("The Cat's hat.", "a-b -c", "dont", "ten men's", "1,000", "a.n", "..5"):
        assert vqa_eval(evalai(answer)) == evalai(answer)


def test_contractions_are_the_official_ones():
    assert len(_CONTRACTIONS) == 120
    odd = {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd", "Im": "I'm"}
    assert odd.items() <= _CONTRACTIONS.items()


def test_uploads_keep_what_is_missing():
    assert uploaded(["Two", None, ""]) == ["2", None, ""]
