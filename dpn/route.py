"""Draw what each layer kept of a picture for a question, and why.

    python -m dpn.route run=outputs/main/default-0123abcd image=photo.png prompt="What is it?"
    python -m dpn.route run=... image=photo.png prompt="What is it?" to=route.png

Without `to` it is drawn on the terminal. What a gate decides by are the probabilities below each
picture.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from torch import Tensor

from dpn import inference
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.inference import read_images
from dpn.inference.survivors import Passage, watch
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.reports.overlays import count_rows, to_pixels
from dpn.reports.route import LayerChoice, Route, RouteStep, draw_route
from dpn.reports.route_terminal import print_route
from dpn.runs.request import ConfigError
from dpn.tokens import Decision, RowDecision, Trace

#: What rows choose from where each decides for itself, see `RowDecision`.
ROW_OPTIONS = ("pass by", "take part")


def route(
    run: str,
    image: str,
    prompt: str,
    to: str | None = None,
    max_new_tokens: int = 64,
    device: str = "auto",
) -> Route:
    """Answer one question, and draw its route.

    Args:
        run: run folder or Hugging Face model folder.
        image: file, or several with commas between them.
        prompt: the question; `<image>` marks may say where the images belong.
        to: PNG to write; None: nothing is written.
        max_new_tokens: upper limit of the answer.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: if there is no image, no question or no token to answer with, or `to` is no
            PNG.
    """
    given = {"image": image, "prompt": prompt}
    problems = [f"`{key}` is empty." for key, text in given.items() if not text.strip()]
    if to is not None and not to.endswith(".png"):
        problems.append(f"`to={to}` is no PNG; give a name that ends in .png.")
    if max_new_tokens < 1:
        problems.append(f"`max_new_tokens={max_new_tokens}` is too small; give at least 1 token.")
    if problems:
        raise ConfigError(problems)
    images = read_images(image)
    model, processor = inference.load(Path(run), device)
    found = trace_route(model, processor, prompt, images, max_new_tokens)
    if to is not None:
        draw_route(found, Path(to))
    return found


def trace_route(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    prompt: str,
    images: list[Image.Image],
    max_new_tokens: int,
) -> Route:
    """Answer one question about some images and tell its route."""
    inputs = inference.inputs_of(processor, prompt, images)
    found = inference.answer(model, processor, inputs, max_new_tokens)[0]
    passage = watch(model, {name: tensor.to(model.device) for name, tensor in inputs.items()})
    share = f"{found['visual_macs_ratio']:.2f} of the visual MACs"
    return Route(
        prompt,
        found["answer"],
        [f"{share}. {_reasons(model, passage.trace)}"],
        _pixels(processor, inputs),
        _steps(passage, found["base_rows"]),
    )


def _pixels(processor: DPNProcessor, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """`[H, W, 3]` each image as the model sees it."""
    recipe, sizes = processor.transform, inputs["image_sizes"].tolist()
    values = zip(inputs["pixel_values"], sizes, strict=True)
    return [to_pixels(one[:, :h, :w], recipe.mean, recipe.std) for one, (h, w) in values]


def _steps(passage: Passage, base_rows: int) -> list[RouteStep]:
    """The first layer, and each one before or in which something was decided or changed."""
    trace, known = passage.trace, 0
    steps: list[RouteStep] = []
    for layer, owners in enumerate(passage.owners):
        new = trace.decisions[known : passage.decided[layer]]
        known = passage.decided[layer]
        choices = [_choice(decision) for decision in new if decision.samples]
        words = f"into layer {layer}"
        for decision in (d for d in trace.row_decisions if d.layer == layer):
            owners, choice = _taking_part(owners, decision)
            choices.append(choice)
            words = f"part in layer {layer}"
        before = steps[-1].owners if steps else None
        same = before is not None and all(map(np.array_equal, owners, before))
        if choices or not same:
            rows = sum(map(count_rows, owners))
            steps.append(RouteStep(f"{words}: {rows} of {base_rows} rows", owners, choices))
    return steps


def _choice(decision: Decision) -> LayerChoice:
    """What was decided about the one sample."""
    if not decision.names:
        return LayerChoice(f"layer {decision.layer} keeps {decision.kept[0]} rows", {})
    probs = dict(zip(decision.names, decision.probs[0].tolist(), strict=True))
    return LayerChoice(f"layer {decision.layer}", probs, decision.names[int(decision.experts[0])])


def _taking_part(
    owners: list[np.ndarray], decision: RowDecision
) -> tuple[list[np.ndarray], LayerChoice]:
    """What is left of the owners without rows that pass the layer by, and the mean chances."""
    chosen = decision.chosen.bool().cpu().numpy()
    ends = np.cumsum([count_rows(owner) for owner in owners])[:-1]
    left = [
        np.where((owner >= 0) & part[owner], owner, -1)
        for owner, part in zip(owners, np.split(chosen, ends), strict=True)
    ]
    means = decision.logits.softmax(-1).mean(0).tolist()
    title = f"layer {decision.layer}, mean over rows"
    return left, LayerChoice(title, dict(zip(ROW_OPTIONS, means, strict=True)))


def _reasons(model: DPNForConditionalGeneration, trace: Trace) -> str:
    """What there is to say about how this router decides."""
    name, router = model.config.router_config["name"], model.router
    if not (trace.decisions or trace.row_decisions):
        return f"router={name} decides nothing about rows: all that enter reach the last layer."
    if not trace.row_decisions and not any(d.names for d in trace.decisions):
        return f"router={name} keeps rows by a fixed rule, without probabilities."
    if float(price := getattr(router, "price", 0.0)):
        return (
            f"router={name} goes by these probabilities, with the price {float(price):.3g} on rows"
            f" that meets router.keep={router.keep}."
        )
    return f"router={name} goes by these probabilities alone."


def main() -> None:
    """Command line of `python -m dpn.route`."""
    with readable_errors():
        arguments: dict[str, Any] = read_arguments(route, sys.argv[1:])
        found = route(**arguments)
        if "to" in arguments:
            print(f"wrote {arguments['to']}")
        else:
            print_route(found, Console())


if __name__ == "__main__":
    main()
