"""Base class of the rules that score answers to questions of own data."""


class Rule:
    """Scores one answer against its reference."""

    def score(self, answer: str, reference: str) -> float:
        """Return a score from 0 (wrong) to 1 (right)."""
        raise TypeError(f"{type(self).__name__} does not implement score.")
