"""The answer is the reference, apart from how it is written."""

from dpn.metrics.normalisation import normal
from dpn.metrics.rules.base import Rule


class Normalised(Rule):
    """1 if answer and reference are equal after `dpn.metrics.normalisation.normal`."""

    def score(self, answer: str, reference: str) -> float:
        return float(normal(answer) == normal(reference))
