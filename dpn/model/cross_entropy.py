"""Cross entropy of long vocabularies without copies of all logits in fp32.

Logits are what a training step holds most of. The head makes all of them in one call, as often on
every process as sharding engines want it; what follows runs in chunks of rows, and again in the
backward pass.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Logits that are worked on at a time.
CHUNK = 2**24


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses of rows in fp32, `[n]`.

    Args:
        logits: `[n, vocabulary]`.
        targets: `[n]`.
    """
    rows = max(1, CHUNK // logits.shape[1])
    if len(logits) <= rows:
        return _cross_entropy(logits, targets)
    chunks = zip(logits.split(rows), targets.split(rows), strict=True)
    again = partial(checkpoint, _cross_entropy, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(*chunk) for chunk in chunks])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")
