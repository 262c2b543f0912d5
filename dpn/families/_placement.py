"""Where the blocks of images lie among the columns of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dpn.common.errors import SettingError
from dpn.families.base import Image
from dpn.tokens import Span

#: See `Family.begins`.
Begins = Callable[[np.ndarray, np.ndarray], np.ndarray]
#: Image of a span that belongs to the image of the span before it.
CONTINUED = -1


def place_spans(
    ids: np.ndarray,
    placeholders: Mapping[str, int],
    images: Mapping[str, Sequence[Image]],
    begins: Begins | None = None,
) -> tuple[Span, ...]:
    """Return the spans of a batch, in the order of their columns.

    Args:
        ids: Token ids `[B, T]`; padding must differ from the placeholders.
        placeholders: Placeholder id of each kind of image.
        images: Images of each kind that the vision tower encoded, sample after sample. In beam
            search and with several sequences to a sample, each sample's images stand for all of its
            copies, which follow each other.
        begins: `Family.begins`, if the images are single tiles; default: each one is an image.

    Raises:
        SettingError: If the images do not fit the columns.
    """
    found = [
        (span.sample, span.column, kind, span)
        for kind, placeholder in placeholders.items()
        for span in _of_kind(kind, ids, placeholder, images.get(kind, ()), begins)
    ]
    spans: list[Span] = []
    image, latest = -1, None
    for sample, _, kind, span in sorted(found, key=lambda place: place[:2]):
        if span.image != CONTINUED and (sample, kind, span.image) != latest:
            image, latest = image + 1, (sample, kind, span.image)
        spans.append(replace(span, image=image))
    return tuple(spans)


def encoded_blocks(
    spans: Sequence[Span],
    ids: np.ndarray,
    placeholders: Mapping[str, int],
    images: Mapping[str, Sequence[Image]],
) -> list[tuple[str, int, int]]:
    """Return the block that each span of `place_spans` stands for: the kind of its image, the
    image's index among the encoded ones of its kind, and the block's index in the image. The
    arguments are those of `place_spans`.
    """
    kinds = {placeholder: kind for kind, placeholder in placeholders.items()}
    kind_of = [kinds[int(ids[span.sample, span.column])] for span in spans]
    found = [("", 0, 0)] * len(spans)
    for kind in placeholders:
        own = [i for i, name in enumerate(kind_of) if name == kind]
        blocks = [(i, b) for i, image in enumerate(images.get(kind, ())) for b in range(len(image))]
        copies = len(own) // max(1, len(blocks))
        first = done = 0
        for sample in range(len(ids)):
            mine = [i for i in own if spans[i].sample == sample]
            first = done if sample % max(1, copies) == 0 else first
            done = first + len(mine)
            for place, i in enumerate(mine):
                found[i] = (kind, *blocks[first + place])
    return found


def _of_kind(
    kind: str, ids: np.ndarray, placeholder: int, images: Sequence[Image], begins: Begins | None
) -> list[Span]:
    marks = ids == placeholder
    counts, tokens = marks.sum(1), sum(block.rows for image in images for block in image)
    columns = int(counts.sum())
    if not columns:
        return []
    copies = columns // tokens if tokens else 0
    if not tokens or columns != copies * tokens or len(counts) % copies:
        raise SettingError(
            f"input_ids have {columns} {kind} tokens, but the {len(images)} encoded {kind}s have"
            f" {tokens}; the prompt may have been truncated, or made by another processor."
        )
    spans: list[Span] = []
    first = number = 0  # of the sample's first and next image among the encoded ones
    for sample, row in enumerate(marks):
        if sample % copies:  # a copy of the sample before
            number = first
        first, columns_of = number, np.flatnonzero(row)
        runs = columns_of[np.flatnonzero(np.diff(columns_of, prepend=-2) > 1)]
        firsts = None if begins is None else set(runs[begins(ids[sample], runs)].tolist())
        done = 0
        while done < len(columns_of):
            if number == len(images):
                raise _misplaced(kind, sample, len(columns_of), done)
            for block in images[number]:
                here = columns_of[done : done + block.rows]
                if len(here) < block.rows or here[-1] - here[0] != block.rows - 1:
                    raise _misplaced(kind, sample, len(columns_of), done + block.rows)
                column = int(here[0])
                image = number if firsts is None or column in firsts else CONTINUED
                spans.append(Span.wide(sample, image, column, block.grid, block.tail))
                done += block.rows
            number += 1
    return spans


def _misplaced(kind: str, sample: int, columns: int, needed: int) -> SettingError:
    return SettingError(
        f"Sample {sample} has {columns} {kind} tokens, which do not fit its {kind}s (a grid ends"
        f" after {needed} tokens); the prompt may have been truncated, two {kind}s may follow each"
        " other without text between them, or the processor does not belong to the model."
    )
