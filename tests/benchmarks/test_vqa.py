import pytest

from dpn.benchmarks._vqa import official_accuracy, soft_accuracy


def by_the_formula(answer, references):
    """Each reference is left out once, as in the paper."""
    shares = []
    for out in range(len(references)):
        others = references[:out] + references[out + 1 :]
        shares.append(min(1, others.count(answer) / 3))
    return sum(shares) / len(shares)


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_soft_accuracy_of_ten(matches, score):
    references = ["red"] * matches + ["blue"] * (10 - matches)
    assert soft_accuracy("red", references) == pytest.approx(score)


@pytest.mark.parametrize("people", [1, 3, 7, 10])
def test_soft_accuracy_is_the_papers_formula(people):
    for matches in range(people + 1):
        references = ["red"] * matches + ["blue"] * (people - matches)
        assert soft_accuracy("red", references) == pytest.approx(by_the_formula("red", references))


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("A T-shirt", ["t-shirt"] * 9 + ["shirt"], 1),  # marks of both go
        ("A T-shirt", ["t-shirt"] * 10, 0),  # all equal: the references keep theirs
        ("red", ["Red"] * 9 + ["blue"], 0),  # references keep case
        ("a dog", ["a dog"] * 9 + ["cat"], 0),  # and articles
        ("Two.", ["2"] * 2 + ["3"] * 8, 0.6),
    ],
)
def test_what_the_official_evaluator_compares(answer, references, score):
    assert official_accuracy(answer, references) == pytest.approx(score)
