"""Print an answer while it is generated."""

from transformers import TextStreamer


class Words(TextStreamer):
    """Streamer that prints an answer while it is generated, without leading whitespace."""

    begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print text that is final."""
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        super().on_finalized_text(text, stream_end)
