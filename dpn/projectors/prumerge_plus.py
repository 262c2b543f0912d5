"""PruMerge+: PruMerge with evenly spaced tokens besides the outliers (arXiv 2403.15388)."""

import torch
from torch import Tensor

from dpn.projectors.prumerge import PruMergeProjector


class PruMergePlusProjector(PruMergeProjector):
    """PruMerge that also keeps evenly spaced tokens, so that no part of the image goes unseen.

    Outliers are a share 1/s of the tokens; besides them every (s/3)-th token from the first one is
    kept (both rounded down, at least every one; as in the source the very last token is none of
    them). Without an outlier the source has no spacing: then only the last token is left, as in
    PruMerge. With `keep`, half of the kept tokens are those of largest attention, half evenly
    spaced among the others. Arguments as of `PruMergeProjector`.
    """

    def rows(self, cells: int) -> int:
        """See `PruMergeProjector.rows`; spaced tokens may be all."""
        return cells + 1 if self.keep is None else super().rows(cells)

    def choose(self, order: Tensor, outliers: int) -> Tensor:
        if not outliers:
            return order[:0]
        cells = len(order)
        step = max(1, cells // outliers // 3)
        return _and_spaced(order, outliers, torch.arange(0, cells - 1, step, device=order.device))

    def choose_exactly(self, order: Tensor, count: int) -> Tensor:
        top = (count + 1) // 2
        others = order[top:].sort().values
        spaced = torch.arange(count - top, device=order.device) * len(others) // max(1, count - top)
        return torch.cat([order[:top], others[spaced]])


def _and_spaced(order: Tensor, top: int, spaced: Tensor) -> Tensor:
    """The first ones of an order, then the spaced places that are not among them."""
    return torch.cat([order[:top], spaced[~torch.isin(spaced, order[:top])]])
