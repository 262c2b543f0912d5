"""Inactive head pruning of YOPO (arXiv 2410.06169, section 3): visual rows have few heads."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from dpn.common.progress import progress
from dpn.cost import TextShape, Unreachable
from dpn.routers._planned import PlannedRouter
from dpn.routers.base import Router, RouterSizes, RoutingContext, Where
from dpn.tokens import LayerPlan, PackedTokens

#: How scores are made, for messages.
COMMAND = "python tools/search.py run=RUN router=head_pruning"
Scores = Sequence[Sequence[float]]


class HeadPruningRouter(PlannedRouter):
    """Visual rows ask, and show their values, only in heads whose score is above a threshold.

    As in `gen_mask_llava.py` of ZhangAIPI/YOPO_MLLM_Pruning: on a sample, r of a head is the
    attention mass on visual keys over that on text keys, and a head stays where r is above the
    threshold on more than 40 of 100 samples. A score is the r that two fifths of the samples are
    above, so one file of scores serves every threshold; `search` makes it. In other heads the
    attention of text to visual values is lost, not shared out among text, as released.

    Left open there: which rows' attention is summed, here that of the instruction's text; and how
    heads that share keys are pruned, here all or none of a group, by its highest score.

    Args:
        scores: per layer and key/value head, or the file that `tools/search.py` writes.
        threshold: 0.035, of `headmask_30` for the 13B, with which `finetune_yopo.sh` trains.
        keep_layers: first layers that keep every head; 2.
        keep: share of visual MACs to come closest to instead, by choosing the threshold.
    """

    files = MappingProxyType({"scores": "head_scores.json"})
    search_samples = 100

    def __init__(
        self,
        scores: Scores | str | None = None,
        threshold: float = 0.035,
        keep_layers: int = 2,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        self.keep_layers = keep_layers
        scores = read_scores(scores)
        self.problems = problems_of(scores, sizes["text"])
        self.scores = None if self.problems or scores is None else scores
        highest = max((score for row in self.scores or () for score in row), default=1.0)
        threshold = min(threshold, highest)  # nothing is above either
        super().__init__(None, threshold, (0.0, highest), keep, **sizes)

    @classmethod
    def inline_files(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """With the scores that the file holds."""
        return {**arguments, "scores": read_scores(arguments.get("scores"))}

    @classmethod
    @torch.inference_mode()
    def search(cls, model: Any, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Score the heads of a model; the release takes 100 samples.

        Args:
            model: see `Router.search`.
            batches: see `Router.search`.

        Returns:
            Scores per layer and key/value head: the r that two fifths of the samples are above, of
            the head of its group where that is highest.

        Raises:
            ValueError: if no sample has an image.
        """
        watch = _Watch(**model.router.sizes)
        watch.ratios = [[] for _ in range(watch.text.num_layers)]
        for batch in progress(batches, "scoring heads"):
            model(**batch, logits_to_keep=1, router=watch)
        if not watch.ratios[0]:
            raise ValueError("Heads are scored on samples with images; these have none.")
        heads = watch.text.kv_heads
        return {"scores": [scores_of(torch.stack(ratios), heads) for ratios in watch.ratios]}

    @classmethod
    def example(cls, text: TextShape) -> dict[str, Any]:
        """Scores from 0.001 to 0.069 in random order: half of them are above the threshold."""
        scores = torch.linspace(0.001, 0.069, text.num_layers * text.kv_heads)
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
        return {"scores": scores[order].view(text.num_layers, text.kv_heads).tolist()}

    def plan_of(self, layer: int, strength: float) -> LayerPlan | None:
        """The heads whose score is above the threshold; without scores all."""
        if self.scores is None or layer < self.keep_layers:
            return None
        heads = tuple(h for h, score in enumerate(self.scores[layer]) if score > strength)
        return None if len(heads) == self.text.kv_heads else LayerPlan(heads=heads)

    def check(self) -> list[str]:
        """Scores that are missing or do not fit; else as for all. Without scores all heads stay, so
        that no share but 1 can be reached.
        """
        if self.scores is not None:
            return super().check()
        missing = (
            "router.scores is null, so it is not known which heads look at images; make them of a"
            f" trained run with `{COMMAND}` and give router.scores=RUN/head_scores.json."
        )
        return self.problems or [missing if self.keep is None else Unreachable(missing)]


def read_scores(scores: Scores | str | None) -> Scores | None:
    """The numbers of a file of scores; numbers are returned as they are.

    Raises:
        ValueError: if there is no such file, or it holds no scores.
    """
    if not isinstance(scores, str):
        return scores
    path = Path(scores)
    if not path.is_file():
        raise ValueError(f"router.scores={scores} is no file; make it with `{COMMAND}`.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["layers"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"router.scores={scores} holds no JSON mapping with `layers`; make it again with"
            f" `{COMMAND}`."
        ) from None


def problems_of(scores: Scores | None, text: TextShape) -> list[str]:
    """A sentence if scores are not those of a decoder."""
    if scores is None:
        return []
    rows = scores if isinstance(scores, list | tuple) else []
    shape = [len(row) if isinstance(row, list | tuple) else 0 for row in rows]
    if shape != [text.kv_heads] * text.num_layers:
        heads = ", ".join(map(str, sorted(set(shape)))) or "no"
        return [
            f"router.scores has {len(shape)} layers of {heads} heads; this decoder has"
            f" {text.num_layers} layers of {text.kv_heads} key/value heads. Make scores of its own"
            f" with `{COMMAND}`."
        ]
    for layer, row in enumerate(rows):
        for score in row:
            if type(score) not in (int, float) or not math.isfinite(score) or score < 0:
                return [
                    f"router.scores holds {score} in layer {layer}; scores are finite numbers from"
                    f" 0 on. Make them again with `{COMMAND}`."
                ]
    return []


class _Watch(Router):
    """Lets every row go on and notes r of every head.

    Attributes:
        ratios: per layer, `[H]` of every sample with an image.
    """

    ratios: list[list[Tensor]]

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        """Notes the layer that is about to run, one sample at a time to hold few probabilities."""
        if where != "pre":
            return tokens
        for sample, rows in enumerate(text_rows(tokens, context)):
            if tokens.visual_rows[sample] and rows:
                asked = [rows if b == sample else [] for b in range(len(tokens.lengths))]
                probs = context.attention_scores(tokens, asked)[sample]
                begin, end = tokens.offsets[sample : sample + 2]
                self.ratios[layer].append(head_ratios(probs, tokens.is_visual[begin:end]))
        return tokens


def text_rows(tokens: PackedTokens, context: RoutingContext) -> list[list[int]]:
    """Per sample the rows of the instruction that are text."""
    ends = [tokens.row(b, max(end - 1, 0)) + 1 for b, (_, end) in enumerate(context.instruction)]
    return [
        (begin + np.flatnonzero(~tokens.is_visual[begin:end])).tolist()
        for begin, end in zip(tokens.offsets, ends, strict=False)
    ]


def head_ratios(probs: Tensor, is_visual: np.ndarray) -> Tensor:
    """Mass of probabilities `[R, H, n]` on visual keys over that on text keys, `[H]`."""
    visual = torch.from_numpy(is_visual).to(probs.device)
    mass = probs.sum(0)
    return (mass[:, visual].sum(1) / mass[:, ~visual].sum(1)).cpu()


def scores_of(ratios: Tensor, kv_heads: int) -> list[float]:
    """Scores of a layer's key/value heads from r of S samples, `[S, H]`."""
    ranked = ratios.sort(0, descending=True).values
    # Above a threshold if, and only if, r is above it on more than two fifths of the samples.
    votes = ranked[2 * len(ranked) // 5]
    return votes.unflatten(0, (kv_heads, -1)).amax(1).tolist()
