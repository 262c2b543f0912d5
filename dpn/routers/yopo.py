"""YOPO (arXiv 2410.06169): four reductions of the work for visual rows, combined."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import nn

from dpn.common.ranges import AtLeast0, NonNegative
from dpn.cost import TextShape, solve_for_keep
from dpn.routers._joined import JoinedRouter, joined
from dpn.routers._planned import native_macs
from dpn.routers.base import RouterSizes, check_keep
from dpn.routers.head_pruning import HeadPruningRouter, Scores, read_scores
from dpn.routers.layer_drop import LayerDropRouter
from dpn.routers.neighbor_attention import NeighborAttentionRouter, longest_side
from dpn.routers.sparse_ffn import SparseFFNRouter


class YOPORouter(JoinedRouter):
    """Combines `neighbor_attention`, `head_pruning`, `sparse_ffn` and `layer_drop`.

    Each of these routers documents its method and how it differs from the release. The defaults are
    those of `finetune_yopo.sh`, which trains the 13B, with the layers scaled to the depth.

    A `keep` is met by one strength s for all four methods, which is 1 for the given arguments: the
    number of layers without visual rows, the number of unused FFN units and the threshold are
    multiplied by s, the radius is divided by s. At s = 0 nothing is left out, and each visual row
    attends to its whole image.

    Args:
        radius: Distance in grid rows and columns, see `neighbor_attention`.
        scores: Scores of heads or their file, see `head_pruning`; null: all heads are kept.
        threshold: Smallest score of the heads that are kept, see `head_pruning`.
        ratio: Divisor of the number of FFN units, see `sparse_ffn`.
        k: Number of layers with visual rows, see `layer_drop`; default: half of the layers.
        keep: Target share of visual MACs; the strength whose share is closest to it is used.
        reference: Whether the visual rows of deep layers are computed as in the release, see
            `layer_drop`.
    """

    acts = "within layers"
    lossless = False  # visual rows attend to later ones
    files = HeadPruningRouter.files
    search_samples = HeadPruningRouter.search_samples

    def __init__(
        self,
        radius: AtLeast0 = 2,
        scores: Scores | str | None = None,
        threshold: NonNegative = 0.035,
        ratio: float = 2.0,
        k: int | None = None,
        keep: float | None = None,
        reference: bool = False,
        **sizes: Unpack[RouterSizes],
    ):
        super().__init__([], **sizes)
        self.radius, self.threshold, self.ratio = radius, threshold, ratio
        self.reference = reference
        self.k = self.text.num_layers // 2 if k is None else k
        self.scores = read_scores(scores)
        self.keep, self.positions = keep, "keep"
        self.bounds = 0.0, float(self.text.num_layers)  # every method is at its limit there
        strength = 1.0 if keep is None else solve_for_keep(keep, self.share, *self.bounds)
        self.members = nn.ModuleList(self.parts(strength).values())

    @classmethod
    def inline_files(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return HeadPruningRouter.inline_files(arguments)

    @classmethod
    def search(cls, model: Any, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Measure the scores of heads, see `head_pruning`."""
        return HeadPruningRouter.search(model, batches)

    @classmethod
    def example(cls, text: TextShape) -> dict[str, Any]:
        """Scores of heads, see `head_pruning`."""
        return HeadPruningRouter.example(text)

    def parts(self, strength: float) -> dict[str, Any]:
        """Return the routers of the four methods at a strength, by name."""
        layers, units = self.text.num_layers, self.text.ffn_size
        sizes = self.sizes
        longest = longest_side(self.blocks)
        radius = min(longest, self.radius / strength) if strength else longest
        ratio = self.ratio / max(self.ratio * (1 - strength) + strength, self.ratio / units)
        k = max(0, round(layers - strength * (layers - self.k)))
        threshold = strength * self.threshold
        parts: dict[str, Any] = {
            "neighbor_attention": NeighborAttentionRouter(round(radius), **sizes),
            "sparse_ffn": SparseFFNRouter(ratio, **sizes),
            "layer_drop": LayerDropRouter(k, reference=self.reference, **sizes),
        }
        if self.scores is not None:
            parts["head_pruning"] = HeadPruningRouter(self.scores, threshold, **sizes)
        return parts

    def share(self, strength: float) -> float:
        parts = self.parts(strength)
        k = round(parts.pop("layer_drop").strength)
        plans = list(zip(*(part.plans for part in parts.values()), strict=True))
        plans = plans if self.reference else plans[:k]
        macs = sum(native_macs(self.text, joined(same), self.blocks) for same in plans)
        return macs / self.text.full_macs(self.entering)

    def reach(self) -> tuple[float, float]:
        high, low = map(self.share, self.bounds)
        return low, high

    def check(self) -> list[str]:
        problems = [f"{n}: {p}" for n, part in self.parts(1.0).items() for p in part.check()]
        return check_keep(self) + problems
