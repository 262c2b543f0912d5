"""Ask a trained model about an image.

    python -m dpn.generate run=RUN_FOLDER image=mosaic.png prompt="Read the first 2 rows."

Prints the answer, the route and the visual MACs ratio.
"""

# Functions import what needs torch, so that `--help` and a misspelt name are answered before.

import sys
from pathlib import Path
from typing import Any

from dpn.cli.arguments import read_arguments
from dpn.cli.errors import readable_errors
from dpn.common import early_stop
from dpn.common.ranges import AtLeast1, Device, Keep, NonNegative, ProjectorName, RouterName, Seed
from dpn.common.text import answer_text


def generate(
    run: str,
    prompt: str,
    image: str | None = None,
    max_new_tokens: AtLeast1 = 64,
    temperature: NonNegative = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    router: RouterName | None = None,
    projector: ProjectorName | None = None,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Answer one question.

    Args:
        run: Run folder, or Hugging Face folder or Hub id of a DPN or LLaVA-1.5 model.
        prompt: Question; `<image>` marks may set the positions of the images.
        image: Image file, or several separated by commas; none by default.
        max_new_tokens: Maximum number of tokens in the answer.
        temperature: 0 for greedy decoding; above 0, tokens are sampled.
        seed: Seed for sampling.
        device: Device of the model; `auto` is the GPU if there is one.
        router: Router that replaces the folder's, e.g. `fastv`; it needs no training.
        projector: Projector that replaces the folder's, e.g. `visionzip`.
        keep: Share of visual MACs that the router spends; with `projector` alone, the share of
            tokens that the projector keeps.

    Returns:
        The answer, see `dpn.inference.answer`.
    """
    import torch

    from dpn import inference

    early_stop.imported()
    images = inference.read_images(image)
    model, processor = inference.load(Path(run), device, router, projector, keep)
    options = {"do_sample": True, "temperature": float(temperature)} if temperature else {}
    torch.manual_seed(seed)
    return inference.ask(model, processor, prompt, images, max_new_tokens, **options)


def main() -> None:
    """Command line of `python -m dpn.generate`."""
    with readable_errors():
        found = generate(**read_arguments(generate, sys.argv[1:]))
        from dpn.inference import route_of

        print(answer_text(found["answer"]) if sys.stdout.isatty() else found["answer"])
        print(f"route: {route_of(found) or 'none'}")
        print(f"visual rows per layer: {' '.join(map(str, found['rows']))}")
        share = f"{found['visual_macs_ratio']:.3f}" if found["base_rows"] else "no image"
        print(f"share of visual MACs: {share}")


if __name__ == "__main__":
    main()
