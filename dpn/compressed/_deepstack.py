"""DeepStack of Qwen3-VL: features of the vision tower that enter after the first decoder layers."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpn.tokens import PackedTokens


@dataclass(frozen=True)
class DeepStack:
    """Features of earlier layers of the vision tower, each added to the visual rows after one of
    the first decoder layers (Qwen3-VL). A row of several cells gets the mean of theirs.

    Attributes:
        planes: Features `[V, D]` of the V visual columns, for layers 0, 1, ...
        marks: The visual columns, bool `[B, T]` on the CPU.
    """

    planes: list[Tensor]
    marks: np.ndarray

    def add(self, layer: int, tokens: PackedTokens) -> PackedTokens:
        """Add the features that follow a layer."""
        if layer >= len(self.planes) or not any(span.rows for span in tokens.spans):
            return tokens
        place = self.marks.cumsum().reshape(self.marks.shape) - 1
        cells, rows = [], []
        for start, span in zip(tokens.starts, tokens.spans, strict=True):
            held = np.flatnonzero(span.owner >= 0)
            cells.append(place[span.sample, span.column] + held)
            rows.append(start + span.owner[held])
        device, dtype = tokens.hidden.device, tokens.hidden.dtype
        cell, row = (torch.from_numpy(np.concatenate(x)).to(device) for x in (cells, rows))
        share = torch.bincount(row, minlength=len(tokens.hidden)).clamp(min=1).reciprocal()
        plane = self.planes[layer].to(device, dtype)[cell] * share.to(dtype)[row, None]
        return tokens.with_hidden(tokens.hidden.index_add(0, row, plane))
