"""Chat with a trained model, about an image or without one.

    python -m dpn.chat run=outputs/main/default-0123abcd image=photo.png

Every line, typed or piped, is a question; its answer comes with the route and the share of visual
work. `/image FILE` starts a new conversation about another image (without FILE: about none), `/new`
one about the same; `/quit` ends.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import TextStreamer

from dpn import inference
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.data.batch import DataError
from dpn.dialogue import Chat
from dpn.inference import read_images, route_of
from dpn.runs.request import ConfigError

HELP = "/image FILE, /new and /quit"


def chat(
    run: str,
    image: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Answer the lines of standard input until it ends.

    Args:
        run: run folder or Hugging Face model folder.
        image: file, or several with commas between them; None: no image.
        max_new_tokens: upper limit of an answer.
        temperature: 0 takes the most probable token, more samples.
        seed: of the sampling.
        device: where the model is.

    Raises:
        ConfigError: if an answer may have no token, or the temperature is negative.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise ConfigError(
            [
                f"`max_new_tokens={max_new_tokens} temperature={temperature}` can not be; at least"
                " 1 token is needed, and the temperature is 0 or more."
            ]
        )
    images = read_images(image)
    conversation = Chat(*inference.load(Path(run), device), max_new_tokens, temperature)
    torch.manual_seed(seed)
    for line in _lines():
        command, _, names = line.partition(" ")
        if command == "/quit":
            break
        try:
            if command == "/image":
                images = read_images(names.strip())
            if command in ("/image", "/new"):
                conversation.reset()
            elif line.startswith("/"):
                raise DataError(f"{command} is no command; there are {HELP}.")
            else:
                _say(conversation, line, images)
        except (DataError, FileNotFoundError) as error:
            print(error, file=sys.stderr)


def _say(conversation: Chat, line: str, images: Sequence[Image.Image]) -> None:
    """Print the answer as it comes, then its route and cost; images go with the first line."""
    words = _Words(conversation.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    found = conversation.ask(line, () if conversation.messages else images, words)
    share = f"{found['visual_macs_ratio']:.3f} of the visual MACs"
    print(f"[{route_of(found) or 'no route'}; {share if found['base_rows'] else 'no image'}]")


def _lines() -> Iterator[str]:
    """Lines of standard input that hold something."""
    typed = sys.stdin.isatty()
    if typed:
        print(f"Ask; there are also {HELP}.")
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise DataError("standard input is no text in UTF-8; convert it.") from error
        if line:
            yield line


class _Words(TextStreamer):
    """Prints an answer as it comes, without the blanks before it."""

    begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what will not change any more."""
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        super().on_finalized_text(text, stream_end)


def main() -> None:
    """Command line of `python -m dpn.chat`."""
    with readable_errors():
        arguments: dict[str, Any] = read_arguments(chat, sys.argv[1:])
        try:
            chat(**arguments)
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
