"""Normalisation of answers as in EvalAI's processor, for TextVQA and uploads."""

from collections.abc import Sequence

from dpn.metrics.normalisation import vqa_eval


def evalai(answer: str) -> str:
    """Normalise an answer like EvalAI's processor (from MMF), for TextVQA and uploads."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_eval(text)


def uploaded(answers: Sequence[str | None]) -> list[str | None]:
    """Normalise answers for upload to the servers of VQAv2 and VizWiz."""
    return [None if answer is None else evalai(answer) for answer in answers]
