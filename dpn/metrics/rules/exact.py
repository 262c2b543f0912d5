"""The answer is the reference, letter by letter."""

from dpn.metrics.rules.base import Rule


class Exact(Rule):
    """1 if the answer equals the reference, except for blanks around them."""

    def score(self, answer: str, reference: str) -> float:
        return float(answer.strip() == reference.strip())
