"""LLaVA's `group_by_modality_length`: an epoch's order in which the samples of a step are of one
kind, with images or without, and its batches about equally long in total."""

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
    """The samples of an epoch; each run of `batch_size * world` is one batch of all ranks.

    A megabatch, whose samples are spread evenly over its batches, is one optimizer step of all
    ranks; in LLaVA-HR it is one batch of all ranks. The last megabatch of either kind, full or not,
    is left over: LLaVA puts both at the end, in the order of the file; LLaVA-HR puts what makes up
    a megabatch at the start and the rest at the end; DPN leaves both out, so that no batch is
    mixed. Where all samples are of one kind, nothing is left out.

    Args:
        lengths: `[R]` words of each sample, never 0; negative without image.
        group: whose variant; not `none`.
        batch_size: of one rank.
        world: number of ranks.
        accumulate: batches per optimizer step.
        rng: decides about everything that is shuffled.
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
    """Shuffled rows, each megabatch of `size` sorted by length and dealt out into chunks."""
    rows = rng.permutation(len(lengths))
    order: list[int] = []
    for start in range(0, len(rows), size):
        megabatch = rows[start : start + size]
        megabatch = megabatch[np.argsort(-lengths[megabatch], kind="stable")]
        order += deal(megabatch.tolist(), lengths[megabatch].tolist(), chunks)
    return np.array(order, dtype=int)


def deal(rows: Sequence[int], lengths: Sequence[int], chunks: int) -> list[int]:
    """Rows in chunks of equal number and about equal total length, one chunk after the other.

    Each row goes to the lightest chunk that is not full. If the chunks can not be equal, they take
    rows in turn.
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
