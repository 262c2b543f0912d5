"""Intervals against cases with a known answer."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from dpn.metrics.statistics import paired_difference, spread


def test_one_seed_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.1, 1, (1, 200)), rng.normal(0, 1, (1, 200))
    found = paired_difference(ours, theirs)
    exact = ttest_rel(ours[0], theirs[0]).confidence_interval()
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.05)
    assert (found.seeds, found.questions) == (1, 200)


def test_seeds_that_disagree_are_the_paired_t_test_over_seeds():
    """All questions of a seed move together, so there are as many observations as seeds."""
    moves = np.array([[0.30], [0.10], [0.20]])
    found = paired_difference(np.broadcast_to(moves, (3, 50)), np.zeros((3, 50)))
    exact = ttest_rel(moves[:, 0], np.zeros(3)).confidence_interval()
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.05)
    assert found.verdict == "no difference shown"  # although each seed is better


@pytest.mark.parametrize(
    ("change", "verdict"), [(0.0, "no difference shown"), (1.0, "better"), (-1.0, "worse")]
)
def test_verdicts_where_nothing_varies(change, verdict):
    found = paired_difference(np.full((2, 5), change), np.zeros((2, 5)))
    assert found.verdict == verdict
    assert found.low == found.mean == found.high == change


def test_one_answer_shows_nothing():
    found = paired_difference(np.ones((1, 1)), np.zeros((1, 1)))
    assert (found.low, found.mean, found.high) == (-np.inf, 1, np.inf)
    assert found.verdict == "no difference shown"


def test_the_pairing_counts():
    """Questions of very different difficulty hide a small gain unless they are paired."""
    difficulty = np.random.default_rng(0).normal(0, 10, (1, 100))
    gain = np.random.default_rng(1).normal(0.1, 0.1, (1, 100))
    assert paired_difference(difficulty + gain, difficulty).verdict == "better"
    assert paired_difference(difficulty + gain, difficulty[:, ::-1]).verdict != "better"


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_question"),
    [(1, 0, 0.5), (2, 0.1, 0), (3, 0.1, 0.1), (3, 0, 0), (5, 0.05, 0.5)],
)
def test_intervals_cover_the_truth(seeds, by_seed, by_question, monkeypatch):
    """Synthetic runs whose true difference is 0: at most about 5 % of the intervals exclude it."""
    monkeypatch.setattr("dpn.metrics.statistics.RESAMPLES", 100)
    rng, questions, excluded, trials = np.random.default_rng(0), 40, 0, 300
    for trial in range(trials):
        scores = rng.normal(0, 0.5, (seeds, questions))
        scores += rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, by_question, (1, questions))
        found = paired_difference(scores, np.zeros_like(scores), seed=trial)
        excluded += found.verdict != "no difference shown"
    assert excluded / trials < 0.05 + 2.5 * (0.05 * 0.95 / trials) ** 0.5


def test_scores_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        paired_difference(np.zeros((1, 3)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="same shape"):
        paired_difference(np.zeros((1, 0)), np.zeros((1, 0)))


def test_spread_in_words():
    assert spread([0.5]) == "0.500"
    assert spread([0.4, 0.6]) == "0.500 ± 0.141"
