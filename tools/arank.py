"""Which layers can let rows pass by: the rank of attention maps, ARank of gamma-MoD (2410.13859).

    python tools/arank.py run=RUN
    python tools/arank.py run=RUN samples=64 data=mosaic tolerance=1e-3

Prints every layer from the lowest mean rank to the highest, for `router=depth_routing
router.layers=[...]`. One sample's map of one layer is computed at a time.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from dpn import inference
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.config import build
from dpn.config.compose import compose
from dpn.model import DPNForConditionalGeneration
from dpn.routers import Router, RoutingContext
from dpn.routers.base import Where
from dpn.runs.request import ConfigError
from dpn.tokens import PackedTokens


class RankOfMaps(Router):
    """Adds up the ranks of each layer's attention maps, and lets every row go on.

    The paper takes the mean over heads and samples, and leaves open which samples and what counts
    as zero; a map that no tolerance cuts has as many ranks as rows, since each row sees itself.

    Args:
        like: router of the model.
        tolerance: singular values below this share of the largest count as zero; None: what
            rounding leaves, see `torch.linalg.matrix_rank`.
    """

    def __init__(self, like: Router, tolerance: float | None = None):
        super().__init__(text=like.text, grid=like.grid)
        self.tolerance, self.samples = tolerance, 0
        self.ranks = [0.0] * self.text.num_layers

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        """Looks at a layer before it runs, at one sample after the other."""
        if where == "pre":
            none: list[Sequence[int]] = [()] * len(tokens.lengths)
            for sample, (first, end) in enumerate(pairwise(tokens.offsets)):
                rows = [*none[:sample], range(first, end), *none[sample + 1 :]]
                self.ranks[layer] += self.rank(context.attention_scores(tokens, rows)[sample])
            self.samples += len(tokens.lengths) if layer == 0 else 0
        return tokens

    def rank(self, probs: Tensor) -> float:
        """Mean over heads of the rank of `[n, H, n]` probabilities."""
        ranks = torch.linalg.matrix_rank(probs.transpose(0, 1), rtol=self.tolerance)
        return float(ranks.float().mean())


@torch.inference_mode()
def mean_ranks(
    model: DPNForConditionalGeneration,
    batches: Sequence[dict[str, Tensor]],
    tolerance: float | None,
) -> list[float]:
    """ARank of each layer over all samples of some batches, without a router acting."""
    ranks = RankOfMaps(model.router, tolerance)
    for batch in batches:
        model(**batch, logits_to_keep=1, router=ranks)
    return [total / ranks.samples for total in ranks.ranks]


def arank(
    run: str,
    samples: int = 50,
    tolerance: float | None = None,
    data: str | None = None,
    device: str = "auto",
) -> list[float]:
    """ARank of each layer of a run or a model folder, on questions of training data.

    Args:
        run: run folder or Hugging Face model folder.
        samples: how many questions.
        tolerance: see `RankOfMaps`.
        data: choice of the data group; None: the data of the run.
        device: cpu, cuda or auto.
    """
    if data is None and not (Path(run) / "config.yaml").exists():
        raise ConfigError(
            [f"`run={run}` is not a run folder, so it names no data set; add one: data=mosaic."]
        )
    config = (
        compose("train", [f"data={data}"]).config if data else OmegaConf.load(f"{run}/config.yaml")
    )
    model, processor = inference.load(Path(run), device)
    source = build.data_module(config.data)
    source.processor = processor
    source.prepare_data()
    batches = inference.training_prompts(source, model.device, samples)
    return mean_ranks(model, batches, tolerance)


def main() -> None:
    """Read the command line and print the layers."""
    with readable_errors():
        ranks = arank(**read_arguments(arank, sys.argv[1:]))
    order = sorted(range(len(ranks)), key=lambda layer: ranks[layer])
    for layer in order:
        print(f"layer {layer:>2}  mean rank {ranks[layer]:.2f}")
    print(f"router.layers=[{','.join(map(str, order))}] from the lowest rank to the highest")


if __name__ == "__main__":
    main()
