"""Cross entropy for large vocabularies without an fp32 copy of all logits.

Logits take the most memory of a training step. The language head computes all of them in one call,
because sharding engines need equally many calls on every process. The cross entropy runs in chunks
of rows and is recomputed in the backward pass.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Number of logits in one chunk.
CHUNK = 2**24


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each row in fp32, `[n]`.

    Args:
        logits: Logits `[n, vocabulary]`.
        targets: Target ids `[n]`.
    """
    rows = max(1, CHUNK // logits.shape[1])
    if len(logits) <= rows:
        return _cross_entropy(logits, targets)
    chunks = zip(logits.split(rows), targets.split(rows), strict=True)
    again = partial(checkpoint, _cross_entropy, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(*chunk) for chunk in chunks])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")
