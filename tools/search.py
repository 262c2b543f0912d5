"""Find settings of a router on the training data of a run.

    python tools/search.py run=RUN router=head_pruning            # which heads look at images
    python tools/search.py run=RUN router=redundancy_lens         # which layers to reduce first
    python tools/search.py run=RUN router=vtw eta=0.0005          # from which layer on to drop rows
    python tools/search.py run=RUN router=depth_routing samples=64 tolerance=1e-3

Prints the overrides that use what was found. Scores of heads are written to RUN/head_scores.json,
rankings of layers to RUN/layer_ranking.json.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dpn import inference, routers
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors, set_up_logging
from dpn.common.files import write_json
from dpn.common.schema import check_arguments, nearest
from dpn.config import build
from dpn.config.compose import compose
from dpn.data.batch import DataError
from dpn.routers import Router
from dpn.runs.request import ConfigError


def search(
    run: str,
    router: str,
    samples: int | None = None,
    data: str | None = None,
    device: str = "auto",
    **options: Any,
) -> list[str]:
    """Run the `search` of a router's class, and return the overrides that use what was found.

    Args:
        run: Run folder, or with `data` also a Hugging Face model folder.
        router: Name of the router; the model's own does not act.
        samples: Number of questions; default: the router's `search_samples`.
        data: Choice of the data group; default: the data of the run.
        device: `auto`, `cpu` or `cuda`.
        options: Further arguments of the router's `search`.

    Raises:
        ConfigError: If the router has nothing to search for, or an option is invalid.
        DataError: If the training data has no images.
    """
    kind = searcher(router)
    options = {key: yaml.safe_load(str(value)) for key, value in options.items()}
    problems = check_arguments(
        "", kind.search, options, given=["model", "batches"], suggest=["samples", "data", "device"]
    )
    if problems:
        raise ConfigError(problems)
    if data is None:
        model, module = build.load_run(Path(run), device)
    else:
        model, processor = inference.load(Path(run), device)
        module = build.data_module(compose("train", [f"data={data}"]).config.data)
        module.processor = processor
        module.prepare_data()
    batches = inference.training_prompts(module, model.device, samples or kind.search_samples)
    if not any("pixel_values" in batch for batch in batches):
        raise DataError(f"run={run} was trained on text alone; the search needs images.")
    found = kind.search(model, batches, **options)
    return [f"router={router}", *(written(kind, run, *item) for item in found.items())]


def searcher(router: str) -> type[Router]:
    """Return the class of a router that has settings to search for."""
    able = [name for name in routers.names() if _has_search(routers.resolve(name))]
    if router in able:
        return routers.resolve(router)
    if router in routers.names():
        raise ConfigError(
            [f"`router={router}` has no settings to search for; {', '.join(able)} have."]
        )
    raise ConfigError([f"`router={router}` is unknown; {nearest(router, able)}"])


def _has_search(kind: type[Router]) -> bool:
    """Return whether a router defines or inherits a `search` other than the base class's."""
    return any("search" in vars(base) for base in kind.__mro__[: kind.__mro__.index(Router)])


def written(kind: type[Router], run: str, setting: str, value: Any) -> str:
    """Write the file of a setting, if it has one, and return the override for the setting.

    Files are JSON mappings; a list, with an item per layer, is written under the key `layers`.
    """
    if setting not in kind.files:
        return f"router.{setting}={str(value).replace(' ', '')}"
    path = Path(run) / kind.files[setting]
    write_json(path, value if isinstance(value, Mapping) else {"layers": value})
    return f"router.{setting}={path}"


def main() -> None:
    """Command line of `python tools/search.py`."""
    set_up_logging()
    with readable_errors():
        print(*search(**read_arguments(search, sys.argv[1:])))


if __name__ == "__main__":
    main()
