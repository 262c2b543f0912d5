"""Draw what each decoder layer kept of an image for a question, and why.

    python -m dpn.route run=RUN image=FILE prompt="Read the first 2 rows."
    python -m dpn.route run=RUN image=FILE prompt="Read the first 2 rows." to=route.png
    python -m dpn.route run=RUN image=FILE to=route.png \\
        prompt='[Read the first 2 rows.,What colour is the top left quadrant?]'

`to` writes a figure; without it the route is drawn on the terminal. The bars below a picture are
the probabilities of a gate's options. Several questions about one image are drawn one above
another.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
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
from dpn.reports.route import LayerChoice, Route, RouteStep, draw_routes
from dpn.reports.route_terminal import print_route
from dpn.runs.request import ConfigError
from dpn.tokens import Decision, RowDecision, Trace

#: Options of a `RowDecision`, in which every row decides for itself.
ROW_OPTIONS = ("pass by", "take part")


def route(
    run: str,
    image: str,
    prompt: str | list[str],
    to: str | None = None,
    max_new_tokens: int = 64,
    device: str = "auto",
) -> list[Route]:
    """Answer questions about an image, and draw their routes.

    Args:
        run: Run folder, or Hugging Face folder or Hub id of a DPN or LLaVA-1.5 model.
        image: File, or several with commas between them.
        prompt: One or several questions; `<image>` marks may say where the images belong.
        to: PNG to write; None: no file is written.
        max_new_tokens: Upper limit of an answer.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The route of each question.

    Raises:
        ConfigError: If there is no image, no question or no token to answer with, or `to` is not
            a PNG.
    """
    questions = [prompt] if isinstance(prompt, str) else prompt
    problems = []
    if not image.strip():
        problems.append("`image` is empty.")
    if not (questions and all(question.strip() for question in questions)):
        problems.append("`prompt` is empty.")
    if to is not None and not to.endswith(".png"):
        problems.append(f"`to={to}` is not a PNG; give a name that ends in .png.")
    if max_new_tokens < 1:
        problems.append(f"`max_new_tokens={max_new_tokens}` is too small; give at least 1 token.")
    if problems:
        raise ConfigError(problems)
    images = read_images(image)
    model, processor = inference.load(Path(run), device)
    found = [trace_route(model, processor, q, images, max_new_tokens) for q in questions]
    if to is not None:
        draw_routes(found, Path(to))
    return found


def trace_route(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    prompt: str,
    images: list[Image.Image],
    max_new_tokens: int,
) -> Route:
    """Answer one question about some images, and record its route."""
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
    """The first layer, and each layer at which a decision was made or the rows changed."""
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
    """The decision about the only sample."""
    if not decision.names:
        return LayerChoice(f"layer {decision.layer} keeps {decision.kept[0]} rows", {})
    probs = dict(zip(decision.names, decision.probs[0].tolist(), strict=True))
    return LayerChoice(f"layer {decision.layer}", probs, decision.names[int(decision.experts[0])])


def _taking_part(
    owners: list[np.ndarray], decision: RowDecision
) -> tuple[list[np.ndarray], LayerChoice]:
    """Owners without the rows that pass the layer by, and the mean probability of each option."""
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
    """A sentence about how this router decides."""
    name, router = model.config.router_config["name"], model.router
    if not (trace.decisions or trace.row_decisions):
        return f"router={name} keeps all rows that enter the decoder until its last layer."
    if not trace.row_decisions and not any(d.names for d in trace.decisions):
        return f"router={name} keeps rows by a fixed rule, without probabilities."
    if float(price := getattr(router, "price", 0.0)):
        return (
            f"router={name} decides by these probabilities, which contain a price on rows"
            f" ({float(price):.3g}) calibrated for router.keep={router.keep}."
        )
    return f"router={name} decides by these probabilities."


def _questions(prompt: str) -> str | list[str]:
    """The questions of `[one,another]`, a list as in Hydra's overrides; other text is one question.

    Raises:
        ConfigError: If the list cannot be read.
    """
    if not (prompt.startswith("[") and prompt.endswith("]")):
        return prompt
    try:
        listed: Any = OverridesParser.create().parse_override(f"prompt={prompt}").value()
    except HydraException:
        listed = None
    if not isinstance(listed, list):
        raise ConfigError(
            [
                f"`prompt={prompt}` cannot be read as a list; put quotes around each question:"
                """ prompt='["What is it?","Where is it?"]'."""
            ]
        )
    return [str(question) for question in listed]


def main() -> None:
    """Command line of `python -m dpn.route`."""
    with readable_errors():
        arguments: dict[str, Any] = read_arguments(route, sys.argv[1:])
        found = route(**{**arguments, "prompt": _questions(arguments["prompt"])})
        if "to" in arguments:
            print(f"wrote {arguments['to']}")
            return
        console = Console()
        for number, one in enumerate(found):
            if number:
                console.rule()
            print_route(one, console)


if __name__ == "__main__":
    main()
