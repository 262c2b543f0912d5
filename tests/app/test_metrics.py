"""Rules that score answers to questions of own data."""

import random
from types import SimpleNamespace

import pytest

from dpn import metrics
from dpn.data.sources.llava_json import LlavaJson
from dpn.data.sources.mosaic import Mosaic
from dpn.metrics.answers import accuracies
from dpn.metrics.rules.anls import edit_distance
from dpn.metrics.rules.exact import Exact
from dpn.reports.tables import tables
from tests.app.test_results import row

EQUAL = [
    ("Yes", "yes"),
    ("yes.", "Yes"),
    ("The cat", "a cat"),
    ("two dogs", "2 dogs"),
    ("1,200", "1200"),
    ("Berlin,1889", "Berlin, 1889"),
    ("A.", "A"),
    ("(B)", "b"),
    ("\u22125", "-5"),
    ("< 5", "<5"),
    ("don\u2019t", "don't"),
    ("e\u0301t\u00e9", "\u00e9t\u00e9"),
    ("it is\n a dog", "it is dog"),
    ("?", "?"),
    ("", " "),
]
DIFFERENT = [
    ("Berlin, 1889", "Paris, 1889"),
    ("iPhone X costs 1", "Galaxy 1"),
    ("-5", "5"),
    ("x -5", "x 5"),
    ("2,3", "23"),
    ("1,5", "15"),
    ("0.5", "05"),
    ("1/2", "1.2"),
    ("<5", ">5"),
    ("", "A"),
    ("the", "a"),
    ("!", "?"),
    ("5%", "5"),
    ("", "\u0663"),
    ("12", "2 and 1"),
    ("no", "yes"),
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_the_default_ignores_how_an_answer_is_written(answer, reference):
    assert metrics.score(answer, reference) == metrics.score(reference, answer) == 1


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_the_default_keeps_what_changes_the_meaning(answer, reference):
    assert metrics.score(answer, reference) == metrics.score(reference, answer) == 0


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "expected"),
    [
        ("exact", " yes\n", "yes", 1),
        ("exact", "Yes", "yes", 0),
        ("contains", "I think it is the red cat.", "Red cat", 1),
        ("contains", "a redcat", "red cat", 0),
        ("contains", "12", "2", 0),
        ("contains", "", "A", 0),
        ("contains", "It is 5", "-5", 0),
        ("anls", "Hello", "hello", 1),
        ("anls", "hallo", "hello", 0.8),
        ("anls", "ab", "ax", 0),  # a distance of half the text
        ("anls", "", "", 1),
        ("anls", "", "a", 0),
        ("rouge_l", "a cat on a mat", "a cat on a mat", 1),
        ("rouge_l", "police kill the gunman", "police killed the gunman", 0.75),
        ("rouge_l", "the cat", "the black cat", 0.8),  # precision 1, recall 2/3
        ("rouge_l", "\u732b \u9ed2", "\u732b \u767d", 0.5),
        ("rouge_l", "", "a", 0),
        ("digits", "1 2 3", "1, 2, 3", 1),
        ("digits", "12", "1234", 0.5),
    ],
)
def test_other_rules_by_hand(metric, answer, reference, expected):
    assert metrics.score(answer, reference, metric) == pytest.approx(expected, abs=1e-6)


def test_every_rule_is_from_0_to_1_and_gives_1_to_the_reference():
    draw = random.Random(0)
    texts = [
        "",
        "A",
        "-5",
        "e\u0301",
        *("".join(draw.choices("aB1 .,-<'\n\u732b", k=9)) for _ in range(20)),
    ]
    for name in metrics.names():
        for text in texts:
            assert metrics.score(text, text, name) == pytest.approx(1), (name, text)
            assert 0 <= metrics.score(text, texts[-1], name) <= 1


def test_edit_distance_restated():
    """Against the recursive definition, also where the best alignment is far off the diagonal."""

    def restated(one, other):
        if not one or not other:
            return len(one) + len(other)
        rest = restated(one[1:], other[1:]) + (one[0] != other[0])
        return min(rest, restated(one[1:], other) + 1, restated(one, other[1:]) + 1)

    draw = random.Random(1)
    for _ in range(30):
        pair = ["".join(draw.choices("abc", k=draw.randrange(5))) for _ in range(2)]
        assert edit_distance(*pair) == restated(*pair)
    assert edit_distance("x" * 40 + "abcdefghij" * 4, "abcdefghij" * 4 + "y" * 40) == 80


def test_the_metric_of_a_source_is_checked(tmp_path):
    (tmp_path / "train.json").write_text("[]")
    given = {"train_file": str(tmp_path / "train.json"), "image_root": str(tmp_path)}
    assert LlavaJson(**given).metric == "normalised"
    assert LlavaJson(**given).check() == []
    (problem,) = LlavaJson(**given, metric="bleu").check()
    assert problem.startswith("`data.metric=bleu` is unknown; there is anls, contains, digits,")
    assert Mosaic(root=str(tmp_path)).metric == "digits"


def test_a_third_party_adds_a_rule(monkeypatch):
    point = SimpleNamespace(load=lambda: Exact)
    monkeypatch.setattr(metrics._registry, "_third_parties", {"mine": point}, raising=False)
    assert "mine" in metrics.names()
    assert metrics.score("a", "A", "mine") == 0


def test_reports_name_the_metric():
    rows = [{**row("x", None, 1.0, {}, [4]), "metric": "anls"}]
    page = "\n".join(table.markdown() for table in tables(accuracies(rows), rows))
    assert "by the metric anls (data.metric)" in page
    old = [row("x", None, 1.0, {}, [4])]  # from before there was a choice
    assert "by the metric digits" in tables(accuracies(old), old)[0].note
