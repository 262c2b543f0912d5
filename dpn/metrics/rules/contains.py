"""The answer contains the reference."""

from dpn.metrics.normalisation import normal
from dpn.metrics.rules.base import Rule


class Contains(Rule):
    """1 if the words of the reference stand in the answer, one after another; both are normalised
    by `dpn.metrics.normalisation.normal` before.
    """

    def score(self, answer: str, reference: str) -> float:
        wanted = normal(reference)
        return float(f" {wanted} " in f" {normal(answer)} " if wanted else not normal(answer))
