"""PruMerge+ (arXiv 2403.15388): PruMerge with evenly spaced tokens in addition to the outliers."""

import torch
from torch import Tensor

from dpn.projectors.prumerge import PruMergeProjector


class PruMergePlusProjector(PruMergeProjector):
    """PruMerge that also keeps evenly spaced tokens, so that it covers every part of the image.

    If outliers are a share 1/s of the tokens, every (s/3)-th token from the first one is kept too
    (both rounded down, a step of at least 1, without the very last token, as in the release).
    Without outliers the release defines no spacing; then only the merged token is left, as in
    PruMerge. With `keep`, half of the kept tokens are those of largest attention and half are
    evenly spaced among the others. The arguments are those of `PruMergeProjector`.
    """

    def rows(self, cells: int) -> int:
        # The evenly spaced tokens can be all.
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
    """Return the first `top` of an order, then the spaced places that are not among them."""
    return torch.cat([order[:top], spaced[~torch.isin(spaced, order[:top])]])
