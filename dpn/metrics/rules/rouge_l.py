"""ROUGE-L: the longest common subsequence of words (Lin, 2004), for captions and descriptions."""

import re

from dpn.metrics.rules.base import Rule


class RougeL(Rule):
    """F-measure of the longest common subsequence of the words of answer and reference, in lower
    case and without punctuation. Letters of every script count, unlike in the original, which
    keeps only `a-z0-9`.
    """

    def score(self, answer: str, reference: str) -> float:
        from torchmetrics.functional.text.rouge import rouge_score

        if not _words(answer) or not _words(reference):
            return float(_words(answer) == _words(reference))
        found = rouge_score(answer, reference, rouge_keys="rougeL", normalizer=_words)
        return float(found["rougeL_fmeasure"])


def _words(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.lower()).strip()
