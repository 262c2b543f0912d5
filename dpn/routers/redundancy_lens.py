"""RedundancyLens (arXiv 2501.19036): less attention and FFN for visual rows in some layers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

from dpn.common.errors import SettingError
from dpn.routers._divergence import divergences
from dpn.routers._planned import PlannedRouter
from dpn.routers.base import Router, RouterSizes
from dpn.tokens import LayerPlan

COMMAND = "python tools/search.py run=RUN router=redundancy_lens"
KINDS = ("attention", "ffn")
#: Layers for each kind, in the order in which they are reduced.
Ranking = Mapping[str, Sequence[int]]


class RedundancyLensRouter(PlannedRouter):
    """Hollow attention and a probe-activated dynamic FFN in the layers that a ranking puts first.

    Hollow attention: a visual row attends to the text before it and to the visual rows within a
    window before it; text attends to everything before it. Dynamic FFN: in each layer, some rows of
    an image, the probe, determine the most active hidden units, and all its rows use only these.

    This was written from the abstract of the paper, without its text or the release
    (L-Hugh/RedundancyLens). The defaults of window, ratio and probe, the activation act(gate) * up
    whose absolute mean is compared, and separate rankings for attention and FFN come from a port by
    others. These are our choices: probe rows are evenly spaced, windows and units belong to one
    image, and half of the layers are reduced (which the abstract reports to be free), the deepest
    first if there is no ranking.

    Args:
        ranking: Layers for `attention` and for `ffn` in the order in which they are reduced, or the
            file that `tools/search.py` writes; default: from the last layer backwards.
        reduced: Number of layers that are reduced, of each kind; default: half.
        window: Number of visual rows in a window.
        ratio: Share of the hidden units that visual rows use.
        probe: Distance between probe rows: one row in every `probe`.
        keep: Target share of visual MACs; the number of layers whose share is closest is used.
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
        return {**arguments, "ranking": read_ranking(arguments.get("ranking"))}

    @classmethod
    def search(cls, model: Any, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Rank the layers for each kind of reduction, see `rank_layers`."""
        reduction = cls(**model.router.sizes).reduction
        plans = {kind: reduction(kind == "attention", kind == "ffn") for kind in KINDS}
        return {"ranking": {kind: rank_layers(model, batches, p) for kind, p in plans.items()}}

    def plan_of(self, layer: int, strength: float) -> LayerPlan | None:
        """Return the plan of a layer when the first `strength` layers of each kind are reduced."""
        attention, ffn = (layer in self.ranking[kind][: round(strength)] for kind in KINDS)
        if not attention and not ffn:
            return None
        return self.reduction(attention, ffn)

    def reduction(self, attention: bool, ffn: bool) -> LayerPlan:
        """Return the plan of a layer whose attention, FFN or both are reduced."""
        units = max(1, round(self.text.ffn_size * self.ratio))
        return LayerPlan(
            ffn=units if ffn else None,
            window=self.window if attention else None,
            probe=self.probe if ffn else None,
        )

    def check(self) -> list[str]:
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
    """Read a ranking from a file; a mapping is checked and returned.

    Raises:
        ValueError: If the file does not exist or has no ranking.
    """
    found: Any = ranking
    if isinstance(ranking, str):
        path = Path(ranking)
        if not path.is_file():
            raise SettingError(
                f"router.ranking={ranking} does not exist; make it with `{COMMAND}`."
            )
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
    if found is None:
        return None
    if not isinstance(found, Mapping) or any(not isinstance(found.get(k), list) for k in KINDS):
        raise SettingError(
            f"router.ranking={ranking} has no lists `attention` and `ffn`; make them with"
            f" `{COMMAND}`."
        )
    return {kind: found[kind] for kind in KINDS}


class _Chosen(Router):
    """Follows given plans of layers."""

    plans: Mapping[int, LayerPlan]

    def within(self, layer: int, tokens: Any, context: Any) -> LayerPlan | None:
        return self.plans.get(layer)


def rank_layers(model: Any, batches: Sequence[Mapping[str, Any]], plan: LayerPlan) -> list[int]:
    """Rank layers greedily: each step adds the layer whose reduction changes predictions least.

    The measure is that of `vtw`, the divergence of the last column's prediction, because the
    paper's measure is unknown to us.

    Args:
        model: A `DPNForConditionalGeneration` in evaluation mode; its own router does
            not act.
        batches: Arguments of its `forward`, without labels; they are passed over L * L / 2 times.
        plan: Plan of a reduced layer.

    Returns:
        All layers, in the order in which they are reduced.
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
