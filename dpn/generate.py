"""Ask a trained model about an image.

    python -m dpn.generate run=outputs/main/default-0123abcd image=photo.png prompt="What is it?"

Prints the answer, the route and the share of visual work.
"""

import sys
from pathlib import Path

import torch

from dpn import inference
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
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
        run: run folder or Hugging Face model folder.
        prompt: the question; `<image>` marks may say where the images belong.
        image: file, or several with commas between them; None: no image.
        max_new_tokens: upper limit of the answer.
        temperature: 0 takes the most probable token, more samples.
        seed: of the sampling.
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
        print(found["answer"])
        print(f"route: {route_of(found) or 'none'}")
        print(f"visual rows per layer: {' '.join(map(str, found['rows']))}")
        print(f"share of visual MACs: {found['visual_macs_ratio']:.3f}")


if __name__ == "__main__":
    main()
