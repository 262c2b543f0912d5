"""Compare attention backends on a CPU for samples of few or many rows.

    python experiments/speed/attention.py

Each case is the attention of 8 samples in one layer, with lengths from half to one and a half times
their mean: either all different, or three lengths in random order. The backends, and a third way
that groups samples of equal length, run in turn in one process. Each line of attention.jsonl has
their times relative to `segments` (24 rounds, median and its 95 % interval), and the choice of
`auto`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figure import origin
from torch import Tensor

from dpn.decoder.attention import PrefillAttention, padded, pick_backend, segments
from dpn.metrics.speed import race, ratio, timed
from dpn.tokens import PackedTokens

HERE = Path(__file__).parent
ROUNDS = 24
SAMPLES = 8
HEADS = {96: 4, 512: 8}  # by hidden size
MEANS = (8, 16, 32, 64, 128, 256, 512)
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def lengths(mean: int, distinct: int) -> tuple[int, ...]:
    """Return the number of rows of each sample."""
    spread = np.linspace(mean / 2, 1.5 * mean, distinct).astype(int)
    every = np.resize(spread, SAMPLES)
    return tuple(np.random.default_rng(0).permutation(every).tolist())


def pack(lengths: tuple[int, ...], hidden: int) -> PackedTokens:
    """Create packed text rows of some lengths."""
    return PackedTokens(torch.empty(sum(lengths), hidden), lengths, (0,) * SAMPLES, ())


def ways(tokens: PackedTokens) -> dict[str, Way]:
    """Return the contenders; indices are computed beforehand, as from the second layer on."""
    plan = PrefillAttention(tokens, "auto")
    order = np.argsort(tokens.lengths, kind="stable")
    offsets = tokens.offsets
    index = torch.cat([torch.arange(offsets[b], offsets[b + 1]) for b in order])
    back = index.argsort()
    together = pack(tuple(tokens.lengths[b] for b in order), tokens.hidden.shape[1])
    by_length = PrefillAttention(together, "auto")

    def grouped(*rows: Tensor) -> Tensor:
        out = segments(by_length, *(x.index_select(0, index) for x in rows), 0.2, 0.0)
        return out.index_select(0, back)

    return {
        "segments": lambda *rows: segments(plan, *rows, 0.2, 0.0),
        "padded": lambda *rows: padded(plan, *rows, 0.2, 0.0),
        "grouped": grouped,
    }


def call(way: Way, rows: list[Tensor], backward: bool) -> None:
    """Run attention; short calls are repeated to be long enough to measure."""
    for _ in range(max(1, 2**12 // len(rows[0]))):
        with torch.set_grad_enabled(backward):
            out = way(*rows)
        if backward:
            torch.autograd.grad(out.sum(), rows)


def measure() -> Iterator[dict[str, Any]]:
    """Measure all cases, one line each."""
    for hidden, heads in HEADS.items():
        for mean, distinct in ((mean, d) for mean in MEANS for d in (3, SAMPLES)):
            tokens = pack(lengths(mean, distinct), hidden)
            shape = (len(tokens.hidden), heads, hidden // heads)
            rows = [torch.randn(shape, requires_grad=True) for _ in range(3)]
            for backward in (False, True):
                calls = {
                    name: partial(timed, partial(call, way, rows, backward))
                    for name, way in ways(tokens).items()
                }
                took = race(calls, ROUNDS)["call"]
                yield {
                    "hidden": hidden,
                    "mean_rows": mean,
                    "lengths": distinct,
                    "pass": "forward and backward" if backward else "forward",
                    "auto": pick_backend(tokens),
                    **{n: asdict(ratio(took[n], took["segments"])) for n in ("padded", "grouped")},
                }


def main() -> None:
    for line in measure():
        shown = {k: f"{v['ratio']:.2f}" if isinstance(v, dict) else v for k, v in line.items()}
        print(*(f"{key} {value}" for key, value in shown.items()), sep=", ", flush=True)
        with (HERE / "attention.jsonl").open("a") as file:
            file.write(json.dumps(line | origin("attention.py")) + "\n")


if __name__ == "__main__":
    main()
