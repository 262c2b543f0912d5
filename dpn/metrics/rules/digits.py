"""The digits of the answer, for rows of digits as in `data=mosaic`."""

import re
from itertools import zip_longest
from statistics import fmean

from dpn.metrics.rules.base import Rule


class Digits(Rule):
    """Share of digits that are correct at their place, where a missing or surplus digit is wrong;
    for a reference without digits, 1 for an exact match, else 0. All other letters of an answer to
    a reference with digits are ignored, so this rule fits only answers that are digits.
    """

    def score(self, answer: str, reference: str) -> float:
        true = re.findall(r"\d", reference)
        if not true:
            return float(answer.strip() == reference.strip())
        said = re.findall(r"\d", answer)
        return fmean(a == b for a, b in zip_longest(said, true))
