"""Average normalised Levenshtein similarity, for text read from images (arXiv 1907.00490)."""

from dpn.metrics.rules.base import Rule

#: Distance, as a share of the longer text, from which an answer counts as wrong.
THRESHOLD = 0.5


class ANLS(Rule):
    """1 minus the edit distance divided by the length of the longer text, both in lower case and
    with single blanks; 0 if that share is 0.5 or more (section 3.2 of the paper).
    """

    def score(self, answer: str, reference: str) -> float:
        texts = sorted((" ".join(text.lower().split()) for text in (answer, reference)), key=len)
        short, long = map(len, texts)
        if long - short >= THRESHOLD * long:  # so the distance is as large
            return float(long == 0)
        distance = edit_distance(*texts) / long
        return 1 - distance if distance < THRESHOLD else 0.0


def edit_distance(one: str, other: str) -> int:
    """Return the Levenshtein distance: the fewest letters to insert, remove or replace.

    torchmetrics has one, too, but looks at alignments near the diagonal alone, so that it is too
    large for some long texts.
    """
    before = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        row = [number]
        for place, wanted in enumerate(other):
            replaced = before[place] + (letter != wanted)
            row.append(min(replaced, before[place + 1] + 1, row[-1] + 1))
        before = row
    return before[-1]
