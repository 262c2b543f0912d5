"""The data that flows through the decoder: packed rows, grids, layer plans, and the trace.

Imports `common`.
"""

from dpn.tokens.grids import (
    Block,
    Grid,
    Kernel,
    convolve_grid,
    kernel_on,
    pool_grid,
    pooled_grid,
    window_of_row,
)
from dpn.tokens.layer_plan import (
    BLOCK,
    LayerPlan,
    Work,
    pairs_in_window,
    pairs_within,
    probed_rows,
    work_of,
)
from dpn.tokens.packed import PackedTokens, Positions, edges, pack
from dpn.tokens.spans import CellMap, Span
from dpn.tokens.trace import Decision, RowDecision, Trace

__all__ = [
    "BLOCK",
    "Block",
    "CellMap",
    "Decision",
    "Grid",
    "Kernel",
    "LayerPlan",
    "PackedTokens",
    "Positions",
    "RowDecision",
    "Span",
    "Trace",
    "Work",
    "convolve_grid",
    "edges",
    "kernel_on",
    "pack",
    "pairs_in_window",
    "pairs_within",
    "pool_grid",
    "pooled_grid",
    "probed_rows",
    "window_of_row",
    "work_of",
]
