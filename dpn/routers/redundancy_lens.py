"""RedundancyLens (arXiv 2501.19036): less attention and a sparse FFN for visual rows in the layers
that need them least.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

from dpn.routers._divergence import divergences
from dpn.routers._planned import PlannedRouter
from dpn.routers.base import Router, RouterSizes
from dpn.tokens import LayerPlan

COMMAND = "python tools/search.py run=RUN router=redundancy_lens"
KINDS = ("attention", "ffn")
#: Layers by kind, the first to be reduced first.
Ranking = Mapping[str, Sequence[int]]


class RedundancyLensRouter(PlannedRouter):
    """Hollow attention and a probe-activated dynamic FFN in some layers, in the order of a ranking.

    Hollow attention: a visual row sees text before it and, among visual rows, those of a window
    before it; text sees all. Dynamic FFN: in each layer a probe of an image's rows tells which
    hidden units are the most active, and all its rows use these only.

    Neither the text of the paper beyond its abstract nor the release (L-Hugh/RedundancyLens) was
    at hand: the defaults of window, ratio and probe, the activation act(gate) * up whose absolute
    mean counts, and rankings of attention and FFN apart are those of a port by others. Chosen here:
    the probe is evenly spaced, windows and units are those of one image, half of the layers (which
    the abstract finds to be free) are reduced, the deepest first where no ranking is given.

    Args:
        ranking: layers of `attention` and of `ffn`, the first to be reduced first, or the file that
            `tools/search.py` writes; default: from the last layer on.
        reduced: how many layers of each; default: half.
        window: 256 visual rows.
        ratio: share of the hidden units; 0.2.
        probe: one in so many rows is probed; 10.
        keep: share of visual MACs to come closest to instead, by choosing how many layers.
    """

    trainable = False
    files = MappingProxyType({"ranking": "layer_ranking.json"})

    def __init__(
        self,
        ranking: Ranking | str | None = None,
        reduced: int | None = None,
        window: int = 256,
        ratio: float = 0.2,
        probe: int = 10,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        layers = sizes["text"].num_layers
        last_first = range(layers - 1, -1, -1)
        self.ranking = read_ranking(ranking) or dict.fromkeys(KINDS, last_first)
        self.window, self.ratio, self.probe = window, ratio, probe
        strength = layers // 2 if reduced is None else reduced
        super().__init__(None, strength, (0.0, float(layers)), keep, **sizes)

    @classmethod
    def inline_files(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """With the ranking that the file holds."""
        return {**arguments, "ranking": read_ranking(arguments.get("ranking"))}

    @classmethod
    def search(cls, model: Any, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Rank the layers for each kind of reduction, see `rank_layers`."""
        reduction = cls(**model.router.sizes).reduction
        plans = {kind: reduction(kind == "attention", kind == "ffn") for kind in KINDS}
        return {"ranking": {kind: rank_layers(model, batches, p) for kind, p in plans.items()}}

    def plan_of(self, layer: int, strength: float) -> LayerPlan | None:
        """What is reduced in a layer if so many of each kind are."""
        attention, ffn = (layer in self.ranking[kind][: round(strength)] for kind in KINDS)
        if not attention and not ffn:
            return None
        return self.reduction(attention, ffn)

    def reduction(self, attention: bool, ffn: bool) -> LayerPlan:
        """A layer whose attention, FFN or both are reduced."""
        units = max(1, round(self.text.ffn_size * self.ratio))
        return LayerPlan(
            ffn=units if ffn else None,
            window=self.window if attention else None,
            probe=self.probe if ffn else None,
        )

    def check(self) -> list[str]:
        """As for all, the ranking and the sizes."""
        problems, layers = super().check(), list(range(self.text.num_layers))
        for kind in KINDS:
            if sorted(self.ranking[kind]) != layers:
                problems.append(
                    f"router.ranking.{kind}={list(self.ranking[kind])} must name each of the"
                    f" decoder's layers 0 to {layers[-1]} once; make it with `{COMMAND}`."
                )
        if self.window < 0:
            problems.append(f"router.window={self.window} must be 0 or larger.")
        if not 0 < self.ratio <= 1:
            problems.append(f"router.ratio={self.ratio} must be larger than 0 and at most 1.")
        if self.probe < 1:
            problems.append(f"router.probe={self.probe} must be at least 1.")
        return problems


def read_ranking(ranking: Ranking | str | None) -> Ranking | None:
    """The layers of a file; a ranking is returned as it is.

    Raises:
        ValueError: if there is no such file, or it holds no ranking.
    """
    found: Any = ranking
    if isinstance(ranking, str):
        path = Path(ranking)
        if not path.is_file():
            raise ValueError(f"router.ranking={ranking} is no file; make it with `{COMMAND}`.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
    if found is None:
        return None
    if not isinstance(found, Mapping) or any(not isinstance(found.get(k), list) for k in KINDS):
        raise ValueError(
            f"router.ranking={ranking} holds no lists `attention` and `ffn`; make them with"
            f" `{COMMAND}`."
        )
    return {kind: found[kind] for kind in KINDS}


class _Chosen(Router):
    """Follows given plans."""

    plans: Mapping[int, LayerPlan]

    def within(self, layer: int, tokens: Any, context: Any) -> LayerPlan | None:
        return self.plans.get(layer)


def rank_layers(model: Any, batches: Sequence[Mapping[str, Any]], plan: LayerPlan) -> list[int]:
    """Greedy search: at each step the layer joins whose reduction changes predictions least.

    The measure is that of `vtw`, the divergence of the last column's prediction; the paper's is
    left open here.

    Args:
        model: a `DPNForConditionalGeneration` in evaluation mode; its own router does
            not act.
        batches: arguments of its `forward`, without labels; L * L / 2 passes over them are made.
        plan: what is reduced.

    Returns:
        All layers, the first to be reduced first.
    """
    sizes: RouterSizes = model.router.sizes
    left, ranking = list(range(sizes["text"].num_layers)), list[int]()
    while left:
        tried = []
        for layer in left:
            tried.append(_Chosen(**sizes))
            tried[-1].plans = dict.fromkeys([*ranking, layer], plan)
        found = divergences(model, batches, tried)
        best = left[found.index(min(found))]
        ranking.append(best)
        left.remove(best)
    return ranking
