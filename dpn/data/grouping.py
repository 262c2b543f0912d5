"""LLaVA's `group_by_modality_length`: batches of one kind of sample and about equal total length.

All samples of an optimizer step are of one kind, either with images or without.
"""

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np

Group = Literal["none", "llava", "llava_hr", "dpn"]


def grouped_order(
    lengths: np.ndarray,
    group: Group,
    batch_size: int,
    world: int,
    accumulate: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the samples of an epoch; every `batch_size * world` of them are one global batch.

    Samples are first shuffled into megabatches, then spread evenly over the batches of each. A
    megabatch is one optimizer step of all ranks; in LLaVA-HR it is one batch of all ranks. The last
    megabatch of each kind, full or not, is treated apart: LLaVA puts both at the end, in the order
    of the file; LLaVA-HR puts one full megabatch of them at the start and the rest at the end; DPN
    leaves both out, so that no batch is mixed. If all samples are of one kind, nothing is left out.

    Args:
        lengths: `[R]`, number of words of each sample, never 0; negative without image.
        group: Variant to follow; not `none`.
        batch_size: Batch size per rank.
        world: Number of ranks.
        accumulate: Batches per optimizer step.
        rng: Generator for all shuffling.
    """
    chunks = world if group == "llava_hr" else world * accumulate
    size = chunks * batch_size
    kinds = [
        rows for rows in (np.flatnonzero(lengths > 0), np.flatnonzero(lengths < 0)) if len(rows)
    ]
    if len(kinds) == 1:
        return by_length(lengths, chunks, size, rng)
    streams = [rows[by_length(abs(lengths[rows]), chunks, size, rng)] for rows in kinds]
    cut = [np.split(rows, range(size, len(rows), size)) for rows in streams]
    full = [megabatch for megabatches in cut for megabatch in megabatches[:-1]]
    order = [full[number] for number in rng.permutation(len(full))]
    left = np.concatenate([megabatches[-1] for megabatches in cut])
    if group == "llava":
        order.append(np.sort(left))
    elif group == "llava_hr":
        first = left[:size] if len(left) >= size else left[:0]
        order = [first, *order, left[len(first) :]]
    return np.concatenate([*order, left[:0]])


def by_length(lengths: np.ndarray, chunks: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle samples, sort each megabatch of `size` by length and distribute it over chunks."""
    rows = rng.permutation(len(lengths))
    order: list[int] = []
    for start in range(0, len(rows), size):
        megabatch = rows[start : start + size]
        megabatch = megabatch[np.argsort(-lengths[megabatch], kind="stable")]
        order += deal(megabatch.tolist(), lengths[megabatch].tolist(), chunks)
    return np.array(order, dtype=int)


def deal(rows: Sequence[int], lengths: Sequence[int], chunks: int) -> list[int]:
    """Distribute samples over chunks of equal size and about equal total length.

    Each sample goes to the shortest chunk that is not full. If the samples do not divide evenly,
    the chunks take them in turn.

    Returns:
        The samples, one chunk after the other.
    """
    if len(rows) % chunks:
        return [row for first in range(chunks) for row in rows[first::chunks]]
    piles: list[list[int]] = [[] for _ in range(chunks)]
    lightest = [(0, number) for number in range(chunks)]
    for row, length in zip(rows, lengths, strict=True):
        weight, number = lightest[0]
        piles[number].append(row)
        if len(piles[number]) * chunks == len(rows):
            heapq.heappop(lightest)
        else:
            heapq.heapreplace(lightest, (weight + length, number))
    return [row for pile in piles for row in pile]
