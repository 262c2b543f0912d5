"""Chat with a trained model, with or without an image.

    python -m dpn.chat run=outputs/main/default-0123abcd image=mosaic.png
    > Read the first 2 rows.

Every line of input, typed or piped, is a question; the answer is printed with the route and the
visual MACs ratio. `/image FILE` starts a new conversation about another image (without FILE, about
none), `/new` a new conversation about the same image, and `/quit` ends.
"""

# Functions import what needs torch, so that `--help` and a misspelt name are answered before.

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpn.cli.arguments import read_arguments
from dpn.cli.errors import readable_errors
from dpn.common import early_stop
from dpn.common.errors import DPNError
from dpn.common.ranges import AtLeast1, Device, Keep, NonNegative, ProjectorName, RouterName, Seed

if TYPE_CHECKING:
    from PIL import Image

    from dpn.dialogue import Chat

HELP = "/image FILE, /new or /quit"


def chat(
    run: str,
    image: str | None = None,
    max_new_tokens: AtLeast1 = 256,
    temperature: NonNegative = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    router: RouterName | None = None,
    projector: ProjectorName | None = None,
    keep: Keep | None = None,
) -> None:
    """Answer the lines of standard input until it ends.

    Args:
        run: Run folder, or Hugging Face folder or Hub id of a DPN or LLaVA-1.5 model.
        image: Image file, or several separated by commas; none by default.
        max_new_tokens: Maximum number of tokens in an answer.
        temperature: 0 for greedy decoding; above 0, tokens are sampled.
        seed: Seed for sampling.
        device: Device of the model; `auto` is the GPU if there is one.
        router: Router that replaces the folder's, e.g. `fastv`; it needs no training.
        projector: Projector that replaces the folder's, e.g. `visionzip`.
        keep: Share of visual MACs that the router spends; with `projector` alone, the share of
            tokens that the projector keeps.
    """
    import torch

    from dpn import inference
    from dpn.dialogue import Chat
    from dpn.inference import read_images

    early_stop.imported()
    images = read_images(image)
    model, processor = inference.load(Path(run), device, router, projector, keep)
    conversation = Chat(model, processor, max_new_tokens, temperature)
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
                raise DPNError(f"{command} is not a command; use {HELP}.")
            else:
                _say(conversation, line, images)
        except (DPNError, FileNotFoundError) as error:
            print(error, file=sys.stderr)


def _say(conversation: "Chat", line: str, images: Sequence["Image.Image"]) -> None:
    """Print the answer while it is generated, then its route and cost.

    Images belong to the first line of a conversation.
    """
    from dpn.inference import route_of
    from dpn.inference.streaming import Words

    words = Words(conversation.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    found = conversation.ask(line, () if conversation.messages else images, words)
    share = f"{found['visual_macs_ratio']:.3f} of the visual MACs"
    print(f"[{route_of(found) or 'no route'}; {share if found['base_rows'] else 'no image'}]")


def _lines() -> Iterator[str]:
    """Yield the non-empty lines of standard input."""
    typed = sys.stdin.isatty()
    if typed:
        print(f"Type a question, or {HELP}.")
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise DPNError("standard input is not UTF-8 text; convert it.") from error
        if line:
            yield line


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
