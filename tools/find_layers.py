"""Find the layers in which a trained model needs its visual rows least, on its training data.

    python tools/find_layers.py run=RUN method=vtw
    python tools/find_layers.py run=RUN method=redundancy_lens

The first prints K for `router=vtw router.k=K`; the second writes RUN/layer_ranking.json for
`router=redundancy_lens router.ranking=RUN/layer_ranking.json`.
"""

import sys
from pathlib import Path
from typing import Literal

from dpn import inference, routers
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.common.files import write_json
from dpn.config import build
from dpn.routers.redundancy_lens import rank_layers
from dpn.routers.vtw import find_layer


def find_layers(
    run: str,
    method: Literal["vtw", "redundancy_lens"],
    samples: int = 20,
    eta: float = 0.003,
    device: str = "auto",
) -> str:
    """Search, and say what was found.

    Args:
        run: run folder.
        method: what to find layers for.
        samples: questions of the training data to ask; 20 in the release of `vtw`.
        eta: largest divergence that `vtw` allows.
        device: `auto`, `cpu` or `cuda`.
    """
    model, source = build.load_run(Path(run), device)
    batches = inference.training_prompts(source, model.device, samples)
    if method == "vtw":
        return f"router=vtw router.k={find_layer(model, batches, eta)}"
    lens = routers.build(method, text=model.router.text, grid=model.router.grid)
    ranking = {
        "attention": rank_layers(model, batches, lens.reduction(attention=True, ffn=False)),
        "ffn": rank_layers(model, batches, lens.reduction(attention=False, ffn=True)),
    }
    path = Path(run) / "layer_ranking.json"
    write_json(path, ranking)
    return f"router=redundancy_lens router.ranking={path}"


def main() -> None:
    """Command line of `python tools/find_layers.py`."""
    with readable_errors():
        print(find_layers(**read_arguments(find_layers, sys.argv[1:])))


if __name__ == "__main__":
    main()
