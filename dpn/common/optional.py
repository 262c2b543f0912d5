"""Work that may fail without ending a command, e.g. drawing figures after a long run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from dpn.common.text import one_line, shorten

log = logging.getLogger(__name__)


@contextmanager
def optional(what: str, failed: list[str]) -> Iterator[None]:
    """Turn an error in the block into a warning.

    Args:
        what: What the block makes, as the subject of a sentence.
        failed: List to which a sentence is added if the block fails.
    """
    try:
        yield
    except Exception as error:
        log.debug("%s could not be made.", what, exc_info=True)
        why = shorten(one_line(str(error)), 300) or "no message"
        sentence = f"{what} could not be made ({type(error).__name__}: {why})."
        log.warning("%s", sentence)
        failed.append(sentence)
