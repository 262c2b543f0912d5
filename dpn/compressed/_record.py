"""`Record`: what a compressed model's last prefill kept and cost."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpn.cost import TextShape, visual_macs
from dpn.cost.flops import text_flops
from dpn.tokens import Span, Trace


@dataclass(frozen=True, repr=False)
class Record:
    """What one prefill of a compressed model kept and cost, sample by sample; printed, a line for
    each sample.

    It is made by every forward pass over a prompt and stays during decoding.

    Attributes:
        passed: Trace of the layer loop.
        spans: Spans after the last layer.
        columns: Number of `input_ids` columns of each sample that are not padding.
        text_config: Hugging Face config of the text model.
    """

    passed: Trace
    spans: tuple[Span, ...]
    columns: tuple[int, ...]
    text_config: Any

    @property
    def visual_rows(self) -> list[tuple[int, ...]]:
        """For each layer, the number of visual rows of each sample that enter it."""
        return self.passed.visual_rows

    @property
    def visual_macs(self) -> list[int]:
        """Visual MACs of each sample: multiply-adds of the decoder layers for visual rows, without
        pairs of a text and a visual row, see `dpn.cost.macs`.
        """
        text = TextShape.from_config(self.text_config)
        return [visual_macs(self.passed, b, text) for b in range(len(self.columns))]

    @property
    def share(self) -> list[float]:
        """Visual MACs of each sample as a share of the stock model's for the same image; NaN
        without images.
        """
        text = TextShape.from_config(self.text_config)
        full = [text.num_layers * text.layer_macs(rows) for rows in self.passed.base_rows]
        return [
            macs / whole if whole else float("nan")
            for macs, whole in zip(self.visual_macs, full, strict=True)
        ]

    @property
    def prefill_flops(self) -> list[int]:
        """FLOPs (FMA = 2) of each sample's prefill in the text model, of one row of the language
        head and of the attention scores that the router reads. The vision tower computes the same
        as before. Not counted are the similarities by which `sparsevlm` and `aim` merge rows, and
        what a projector computes to choose tokens.
        """
        text = [n - rows for n, rows in zip(self.columns, self.passed.base_rows, strict=True)]
        return [text_flops(self.passed, b, n, self.text_config) for b, n in enumerate(text)]

    @property
    def survivors(self) -> list[list[np.ndarray]]:
        """For each image, the cells of each of its grids that a row stands for after the last
        layer, bool `[h, w]` each. Dropped rows stand for none, pooled and merged rows for several;
        newline tokens are the last column of their grid.
        """
        images: dict[int, list[np.ndarray]] = {}
        for span in self.spans:
            images.setdefault(span.image, []).append((span.owner >= 0).reshape(span.source))
        return list(images.values())

    def __repr__(self) -> str:
        lines = []
        for sample, (share, flops) in enumerate(zip(self.share, self.prefill_flops, strict=True)):
            rows = [every[sample] for every in self.visual_rows]
            changed = [n for n, now in enumerate(rows) if n == 0 or now != rows[n - 1]]
            parts = [f"{rows[n]} visual rows" + f" from layer {n} on" * (n > 0) for n in changed]
            if any(rows):
                parts.append(f"{share:.3f} of the stock model's visual MACs")
            parts.append(f"{flops / 1e9:.3g} GFLOPs in the text model")
            lines.append(f"sample {sample}: {', '.join(parts)}")
        return "\n".join(lines)
