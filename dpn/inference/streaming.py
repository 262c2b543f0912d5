"""Print an answer while it is generated."""

import sys

from transformers import TextStreamer

from dpn.common.text import answer_text


class Words(TextStreamer):
    """Streamer that prints an answer while it is generated, without leading whitespace.

    A terminal shows that an answer is empty.
    """

    begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print text that is final."""
        text = text if self.begun else text.lstrip()
        if stream_end and not (self.begun or text) and sys.stdout.isatty():
            text = answer_text(text)
        self.begun = self.begun or bool(text)
        super().on_finalized_text(text, stream_end)
