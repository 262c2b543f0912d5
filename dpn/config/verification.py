"""Schema of verify.yaml, and its check."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpn import routers
from dpn.common import hub
from dpn.common.method_files import method_defaults
from dpn.common.ranges import AtLeast0, AtLeast1, Device, Keep
from dpn.common.schema import check_arguments
from dpn.config.checks import check_part
from dpn.config.sections import Paths
from dpn.inference.stock import Dtype
from dpn.runs.request import Node


@dataclass
class StockModel:
    """Section `model`: a Hugging Face VLM as it is.

    Attributes:
        id: Folder or Hub id.
        dtype: Dtype of the weights.
        device: Device; `auto` is the GPU if there is one.
    """

    id: str
    dtype: Dtype = "float32"
    device: Device = "auto"


@dataclass
class Verification:
    """Sections and top-level values of verify.yaml.

    Attributes:
        keep: Share of visual MACs for a typical image; None: the router's settings decide.
        image: Image file; None: a drawn one.
        prompt: Question about the image.
        new_tokens: Number of tokens to generate and compare.
        pairs: Number of timed rounds; 0: none.
    """

    model: dict[str, Any]
    router: dict[str, Any]
    paths: dict[str, Any]
    prompt: str
    keep: Keep | None = 0.5
    image: str | None = None
    new_tokens: AtLeast1 = 12
    pairs: AtLeast0 = 5


def check_verification(config: Node) -> list[str]:
    """Check a verify config; return a sentence for each problem."""
    sections = {key: value for key, value in config.items() if isinstance(value, dict)}
    model, router = sections.get("model", {}), sections.get("router", {})
    problems = check_arguments("", Verification, config)
    problems += check_arguments("paths", Paths, sections.get("paths", {}))
    if "text" in model:
        problems.append(
            "`model` has the sizes of a new model, which has no stock model to compare with; use"
            " model=hf model.id=FOLDER_OR_HUB_ID."
        )
    else:
        problems += check_arguments("model", StockModel, model)
    defaults, _ = method_defaults("router", str(router.get("name")))
    problems += check_part("router", defaults | router, routers)
    name, image = model.get("id"), config.get("image")
    if isinstance(name, str) and (problem := hub.why_missing(name)):
        problems.append(f"`model.id={name}` {problem}; give a model folder or a Hub id.")
    if isinstance(image, str) and not Path(image).is_file():
        problems.append(f"`image={image}` is not a file; give an image file, or leave it out.")
    return problems
