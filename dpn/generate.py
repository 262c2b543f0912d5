"""Ask a trained model about an image.

    python -m dpn.generate run=RUN_FOLDER image=mosaic.png prompt="Read the first 2 rows."

Prints the answer, the route and the visual MACs ratio.
"""

import sys
from pathlib import Path

import torch

from dpn import inference
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.common.text import EMPTY_ANSWER
from dpn.inference import read_images, route_of


def generate(
    run: str,
    prompt: str,
    image: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
) -> inference.Answer:
    """Answer one question.

    Args:
        run: Run folder, or Hugging Face folder or Hub id of a DPN or LLaVA-1.5 model.
        prompt: Question; `<image>` marks may set the positions of the images.
        image: Image file, or several separated by commas; None for no image.
        max_new_tokens: Maximum number of tokens in the answer.
        temperature: 0 for greedy decoding; above 0, tokens are sampled.
        seed: Seed for sampling.
        device: `auto`, `cpu` or `cuda`.
    """
    images = read_images(image)
    model, processor = inference.load(Path(run), device)
    options = {"do_sample": True, "temperature": float(temperature)} if temperature else {}
    torch.manual_seed(seed)
    return inference.ask(model, processor, prompt, images, max_new_tokens, **options)


def main() -> None:
    """Command line of `python -m dpn.generate`."""
    with readable_errors():
        found = generate(**read_arguments(generate, sys.argv[1:]))
        print(found["answer"] or (EMPTY_ANSWER if sys.stdout.isatty() else ""))
        print(f"route: {route_of(found) or 'none'}")
        print(f"visual rows per layer: {' '.join(map(str, found['rows']))}")
        print(f"share of visual MACs: {found['visual_macs_ratio']:.3f}")


if __name__ == "__main__":
    main()
