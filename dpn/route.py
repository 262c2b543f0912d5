"""Draw what each decoder layer kept of an image for a question, and why.

    python -m dpn.route run=RUN image=FILE prompt="Read the first 2 rows."
    python -m dpn.route run=RUN image=FILE prompt="Read the first 2 rows." to=route.png
    python -m dpn.route run=RUN image=FILE to=route.png \\
        prompt='[Read the first 2 rows.,What colour is the top left quadrant?]'

`to` writes a figure; without it the route is drawn on the terminal. The bars below a picture are
the probabilities of a gate's options. Several questions about one image are drawn one above
another.
"""

# Functions import what needs torch, so that `--help` and a misspelt name are answered before.

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dpn.cli.arguments import read_arguments
from dpn.cli.errors import readable_errors
from dpn.common import early_stop
from dpn.common.ranges import AtLeast1, Device, Form, Keep, ProjectorName, RouterName
from dpn.runs.request import ConfigError

if TYPE_CHECKING:
    from dpn.reports.route import Route

PNG = Annotated[str, Form(r".+\.png", "a file name that ends in .png")]


def route(
    run: str,
    image: str,
    prompt: str | list[str],
    to: PNG | None = None,
    max_new_tokens: AtLeast1 = 64,
    device: Device = "auto",
    router: RouterName | None = None,
    projector: ProjectorName | None = None,
    keep: Keep | None = None,
) -> "list[Route]":
    """Answer questions about an image, and draw their routes.

    Args:
        run: Run folder, or Hugging Face folder or Hub id of a DPN or LLaVA-1.5 model.
        image: Image file, or several separated by commas.
        prompt: Question, or several as `[one,another]`; `<image>` marks may set the positions of
            the images.
        to: Figure to write; by default none is written.
        max_new_tokens: Maximum number of tokens in an answer.
        device: Device of the model; `auto` is the GPU if there is one.
        router: Router that replaces the folder's, e.g. `fastv`; it needs no training.
        projector: Projector that replaces the folder's, e.g. `visionzip`.
        keep: Share of visual MACs that the router spends; with `projector` alone, the share of
            tokens that the projector keeps.

    Returns:
        The route of each question.

    Raises:
        ConfigError: If a question is empty.
    """
    questions = [prompt] if isinstance(prompt, str) else prompt
    if not (questions and all(question.strip() for question in questions)):
        raise ConfigError(["`prompt` is empty; give a question."])

    from dpn import inference
    from dpn.inference.routes import trace_route
    from dpn.reports.route import draw_routes

    early_stop.imported()
    images = inference.read_images(image)
    model, processor = inference.load(Path(run), device, router, projector, keep)
    found = [trace_route(model, processor, q, images, max_new_tokens) for q in questions]
    if to is not None:
        draw_routes(found, Path(to))
    return found


def _questions(prompt: str) -> str | list[str]:
    """The questions of `[one,another]`, a list as in Hydra's overrides; other text is one question.

    Raises:
        ConfigError: If the list cannot be read.
    """
    if not (prompt.startswith("[") and prompt.endswith("]")):
        return prompt
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

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
        from dpn.common.table import terminal
        from dpn.reports.route_terminal import print_route

        console = terminal()
        for number, one in enumerate(found):
            if number:
                console.rule()
            print_route(one, console)


if __name__ == "__main__":
    main()
