"""VisionZip (arXiv 2412.04467): keeps the tokens that CLS attends to and merges the others."""

from typing import ClassVar, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.common.ranges import Layers
from dpn.projectors._reduction import ReducingProjector, Rows, by_grid, on_host, take
from dpn.projectors.base import ProjectorSizes
from dpn.tokens import Grid
from dpn.vision import ImageGroup, Needs, VisualFeatures
from dpn.vision.base import VisionTower


class VisionZipProjector(ReducingProjector):
    """Keeps dominant and contextual tokens, then applies the MLP.

    Attention and keys are those of the layer whose output the tower returns. Dominant tokens are
    CLS itself and the tokens with the largest attention of CLS, summed over heads, in their order.
    In a tower without CLS they are the tokens that receive the most attention.
    Of the other tokens, evenly spaced ones are anchors; each remaining token is assigned to the
    anchor with the largest cosine of keys (averaged over heads). An anchor plus the mean of the
    tokens assigned to it is a contextual token. An image with fewer tokens than requested keeps
    all. It needs no training.

    Args:
        keep: Share of the tower's tokens that enter the decoder, divided in the proportion of
            `dominant` and `contextual`; null: these numbers themselves.
        dominant: Number of dominant tokens, CLS included (the paper's example of 64 tokens has 54
            and 10).
        contextual: Number of contextual tokens.
        depth: Number of linear layers of the MLP.
    """

    trainable = False
    needs_keep: ClassVar[bool] = False
    needs = Needs(attention="last", cls=True)
    heads = 1
    own = 1  # number of CLS tokens

    def attach(self, tower: VisionTower) -> None:
        super().attach(tower)
        self.heads, self.own = tower.heads, int(tower.has_cls)

    def __init__(
        self,
        keep: float | None = None,
        dominant: int = 54,
        contextual: int = 10,
        depth: Layers = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(keep, depth, **sizes)
        self.dominant, self.contextual = dominant, contextual

    def numbers(self, cells: int) -> tuple[int, int]:
        """Return the numbers of dominant and contextual tokens of an image."""
        dominant, contextual = self.dominant, self.contextual
        if self.keep is not None:
            rows = super().rows(cells)
            contextual = round(rows * contextual / (dominant + contextual))
            dominant = rows - contextual
        dominant = min(dominant, self.own + cells)
        return dominant, min(contextual, self.own + cells - dominant)

    def rows(self, cells: int) -> int:
        return sum(self.numbers(cells))

    def flops(self, grid: Grid, after: Grid) -> int:
        """FLOPs of the MLP, of CLS's attention, of the cosines and of the means."""
        cells, width = grid[0] * grid[1], self.input_size
        dominant, contextual = self.numbers(cells)
        others = self.own + cells - dominant - contextual
        choice = (self.own + cells) * width + others * contextual * (width + width // self.heads)
        return super().flops(grid, after) + 2 * choice

    def check(self) -> list[str]:
        problems = super().check()
        if self.dominant < 1 or self.contextual < 0:
            problems.append(
                f"projector.dominant={self.dominant} must be at least 1 (CLS) and"
                f" projector.contextual={self.contextual} at least 0."
            )
        return problems

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return self.project(by_grid(features, self._zip))

    def _zip(self, group: ImageGroup) -> list[Rows]:
        dominant, contextual = self.numbers(group.cells)
        order = group.cls_attention(group.heads).sum(1).argsort(dim=1, descending=True, stable=True)
        top, rest = order.tensor_split([dominant - self.own], 1)
        top, rest = top.sort(1).values, rest.sort(1).values
        anchors = spaced(rest.shape[1], contextual)
        others = np.setdiff1d(np.arange(rest.shape[1]), anchors)
        keys = group.token_keys.unflatten(-1, (group.heads, -1)).mean(-2).float()
        keys = F.normalize(take(keys, rest), dim=-1)
        if contextual:
            target = (keys[:, others] @ keys[:, anchors].mT).argmax(-1)  # [S, others]
        else:
            target = top.new_zeros(len(top), 0)
            others = others[:0]
        hidden = take(group.tokens, rest)
        merged = hidden[:, anchors] + average(hidden[:, others], target, contextual)
        cls = [group.cls] if self.own else []
        tokens = torch.cat([*cls, take(group.tokens, top), merged], 1)
        places = torch.cat([top, rest[:, anchors], rest[:, others]], 1)
        row = torch.arange(self.own, dominant + contextual, device=top.device).expand(len(top), -1)
        row = torch.cat([row, target + dominant], 1)
        owners = on_host(torch.full_like(order, -1).scatter(1, places, row))
        return [Rows(x, (1, len(x)), o) for x, o in zip(tokens, owners, strict=True)]


def spaced(cells: int, count: int) -> np.ndarray:
    """Return `count` evenly spaced places of `cells`, from the first one."""
    step = max(1, cells // count) if count else 1
    return np.arange(0, cells, step)[:count]


def average(rows: Tensor, target: Tensor, count: int) -> Tensor:
    """Average the rows `[S, n, C]` of each of `count` targets `[S, n]`; zero for targets without
    rows.
    """
    share = target[..., None] == torch.arange(count, device=target.device)  # [S, n, count]
    share = share.to(rows.dtype)
    return share.mT @ rows / share.sum(1).clamp(min=1)[..., None]
