"""Inactive head pruning of YOPO (arXiv 2410.06169, section 3): fewer heads for visual rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from dpn.common.errors import SettingError
from dpn.common.progress import progress
from dpn.common.ranges import AtLeast0, NonNegative, Range, is_number
from dpn.cost import TextShape, Unreachable
from dpn.routers._planned import PlannedRouter
from dpn.routers.base import Router, RouterSizes, RoutingContext, Where
from dpn.tokens import LayerPlan, PackedTokens

#: Command that measures scores, for error sentences.
COMMAND = "python tools/search.py run=RUN router=head_pruning"
Scores = Sequence[Sequence[float]]


class HeadPruningRouter(PlannedRouter):
    """Visual rows use only the attention heads whose score is above a threshold.

    As in `gen_mask_llava.py` of ZhangAIPI/YOPO_MLLM_Pruning: on a sample, the ratio r of a head is
    its attention mass on visual keys divided by that on text keys, and a head is kept if r is above
    the threshold on more than 40 of 100 samples. The score of a head is the r that two fifths of
    the samples exceed, so one file of scores serves every threshold; `search` measures it. In
    pruned heads visual rows have neither queries nor values: the attention of text to visual values
    is lost and not redistributed to text, as in the release.

    The release does not say which rows' attention is summed, here that of the instruction's text,
    nor how heads that share keys are pruned, here all or none of a group, by its highest score.

    Args:
        scores: Score per layer and key/value head, or the file that `tools/search.py` writes.
        threshold: Smallest score of the heads that are kept; 0.035 belongs to `headmask_30` for the
            13B, with which `finetune_yopo.sh` trains.
        keep_layers: Number of first layers that keep all heads.
        keep: Target share of visual MACs; the threshold whose share is closest to it is used.
    """

    files = MappingProxyType({"scores": "head_scores.json"})
    search_samples = 100

    def __init__(
        self,
        scores: Scores | str | None = None,
        threshold: NonNegative = 0.035,
        keep_layers: AtLeast0 = 2,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        self.keep_layers = keep_layers
        scores = read_scores(scores)
        self.problems = problems_of(scores, sizes["text"])
        self.scores = None if self.problems or scores is None else scores
        highest = max((score for row in self.scores or () for score in row), default=1.0)
        threshold = min(threshold, highest)  # no score is above either
        super().__init__(None, threshold, (0.0, highest), keep, **sizes)

    @classmethod
    def inline_files(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {**arguments, "scores": read_scores(arguments.get("scores"))}

    @classmethod
    @torch.inference_mode()
    def search(cls, model: Any, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Measure the scores of a model's heads; the release uses 100 samples.

        Args:
            model: See `Router.search`.
            batches: See `Router.search`.

        Returns:
            `scores` per layer and key/value head: the r that two fifths of the samples exceed, of
            the head with the highest one in its group.

        Raises:
            ValueError: If no sample has an image.
        """
        watch = _Watch(**model.router.sizes)
        watch.ratios = [[] for _ in range(watch.text.num_layers)]
        for batch in progress(batches, "scoring heads"):
            model(**batch, logits_to_keep=1, router=watch)
        if not watch.ratios[0]:
            raise SettingError("Head scores need samples with images; these have none.")
        heads = watch.text.kv_heads
        return {"scores": [scores_of(torch.stack(ratios), heads) for ratios in watch.ratios]}

    @classmethod
    def example(cls, text: TextShape) -> dict[str, Any]:
        """Scores from 0.001 to 0.069 in random order: half of them are above the threshold."""
        scores = torch.linspace(0.001, 0.069, text.num_layers * text.kv_heads)
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
        return {"scores": scores[order].view(text.num_layers, text.kv_heads).tolist()}

    def plan_of(self, layer: int, strength: float) -> LayerPlan | None:
        """Keep the heads whose score is above the threshold; without scores keep all."""
        if self.scores is None or layer < self.keep_layers:
            return None
        heads = tuple(h for h, score in enumerate(self.scores[layer]) if score > strength)
        return None if len(heads) == self.text.kv_heads else LayerPlan(heads=heads)

    def check(self) -> list[str]:
        # Without scores all heads are kept, so that no share except 1 can be reached.
        if self.scores is not None:
            return super().check()
        missing = (
            "router.scores is null, so it is unknown which heads attend to images; measure them on"
            f" a trained run with `{COMMAND}` and give router.scores=RUN/head_scores.json."
        )
        return self.problems or [missing if self.keep is None else Unreachable(missing)]


def read_scores(scores: Scores | str | None) -> Scores | None:
    """Read scores from a file; numbers are returned unchanged.

    Raises:
        ValueError: If the file does not exist or has no scores.
    """
    if not isinstance(scores, str):
        return scores
    path = Path(scores)
    if not path.is_file():
        raise SettingError(f"router.scores={scores} does not exist; make it with `{COMMAND}`.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["layers"]
    except (ValueError, KeyError, TypeError):
        raise SettingError(
            f"router.scores={scores} is not a JSON mapping with `layers`; make it again with"
            f" `{COMMAND}`."
        ) from None


def problems_of(scores: Scores | None, text: TextShape) -> list[str]:
    """Return an error sentence if scores do not fit a decoder."""
    if scores is None:
        return []
    rows = scores if isinstance(scores, list | tuple) else []
    shape = [len(row) if isinstance(row, list | tuple) else 0 for row in rows]
    if shape != [text.kv_heads] * text.num_layers:
        heads = ", ".join(map(str, sorted(set(shape)))) or "no"
        return [
            f"router.scores has {len(shape)} layers of {heads} heads; this decoder has"
            f" {text.num_layers} layers of {text.kv_heads} key/value heads. Measure its own scores"
            f" with `{COMMAND}`."
        ]
    for layer, row in enumerate(rows):
        for score in row:
            if not is_number(score, Range(0)):
                return [
                    f"router.scores holds {score} in layer {layer}; scores are finite numbers of at"
                    f" least 0. Measure them again with `{COMMAND}`."
                ]
    return []


class _Watch(Router):
    """Records the ratio r of every head and keeps all rows.

    Attributes:
        ratios: Ratios `[H]` per layer and sample with an image.
    """

    ratios: list[list[Tensor]]

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        """Read the layer about to run, one sample at a time to hold few probabilities."""
        if where != "pre":
            return tokens
        for sample, rows in enumerate(text_rows(tokens, context)):
            if tokens.visual_rows[sample] and rows:
                asked = [rows if b == sample else [] for b in range(len(tokens.lengths))]
                mass = context.attention_scores(tokens, asked, lambda probs: probs.sum(0))[sample]
                begin, end = tokens.offsets[sample : sample + 2]
                self.ratios[layer].append(head_ratios(mass, tokens.is_visual[begin:end]))
        return tokens


def text_rows(tokens: PackedTokens, context: RoutingContext) -> list[list[int]]:
    """Return the text rows of each sample's instruction."""
    ends = [tokens.row(b, max(end - 1, 0)) + 1 for b, (_, end) in enumerate(context.instruction)]
    return [
        (begin + np.flatnonzero(~tokens.is_visual[begin:end])).tolist()
        for begin, end in zip(tokens.offsets, ends, strict=False)
    ]


def head_ratios(mass: Tensor, is_visual: np.ndarray) -> Tensor:
    """Divide the mass of probabilities `[H, n]` on visual keys by that on text keys, `[H]`."""
    visual = torch.from_numpy(is_visual).to(mass.device)
    return (mass[:, visual].sum(1) / mass[:, ~visual].sum(1)).cpu()


def scores_of(ratios: Tensor, kv_heads: int) -> list[float]:
    """Compute the scores of a layer's key/value heads from the ratios of S samples, `[S, H]`."""
    ranked = ratios.sort(0, descending=True).values
    # Above a threshold if, and only if, r is above it on more than two fifths of the samples.
    votes = ranked[2 * len(ranked) // 5]
    return votes.unflatten(0, (kv_heads, -1)).amax(1).tolist()
