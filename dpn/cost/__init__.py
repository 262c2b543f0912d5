"""Cost of a forward pass, with the same formulas for all methods: visual MACs, FLOPs, and targets
for the share of visual MACs to keep.

Imports `common` and `tokens`.
"""

from dpn.cost.budget import MeetsKeep, Unreachable, check_share, solve_for_keep
from dpn.cost.flops import Cost, append_flops, costs, decoder_flops, prefill_flops
from dpn.cost.macs import TextShape, layer_macs, visual_macs, visual_macs_ratio

__all__ = [
    "Cost",
    "MeetsKeep",
    "TextShape",
    "Unreachable",
    "append_flops",
    "check_share",
    "costs",
    "decoder_flops",
    "layer_macs",
    "prefill_flops",
    "solve_for_keep",
    "visual_macs",
    "visual_macs_ratio",
]
