"""What the host knows of a batch: which columns hold text, images, instructions and answers."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpn.tokens import Grid

IGNORE = -100


@dataclass(frozen=True)
class HostBatch:
    """What the host knows of a batch, copied from the device once.

    Attributes:
        ids: `[B, T]`.
        mask: bool `[B, T]`; after a cache also over its columns.
        labels: `[B, T]` or None.
        instruction: first and end column of the text before the first supervised token, per sample.
    """

    ids: np.ndarray
    mask: np.ndarray
    labels: np.ndarray | None
    instruction: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        instruction_end: Tensor | None,
    ) -> "HostBatch":
        """Copy what is on a device; see `DPNForConditionalGeneration.forward` for the arguments."""
        ids = input_ids.cpu().numpy()
        mask = (
            np.ones(ids.shape, dtype=bool)
            if attention_mask is None
            else attention_mask.cpu().numpy().astype(bool)
        )
        host_labels = None if labels is None else labels.cpu().numpy()
        begins = mask.argmax(1)
        ends = mask.shape[1] - mask[:, ::-1].argmax(1)
        if host_labels is not None:
            supervised = mask & (host_labels != IGNORE)
            ends = np.where(supervised.any(1), supervised.argmax(1), ends)
        elif instruction_end is not None:
            ends = instruction_end.cpu().numpy()
        instruction = tuple(zip(begins.tolist(), ends.tolist(), strict=True))
        return cls(ids, mask, host_labels, instruction)

    def last(self, columns: int) -> "HostBatch":
        """Only the last columns."""
        return HostBatch(self.ids[:, -columns:], self.mask[:, -columns:], None, ())

    def columns_with(self, token_id: int | None) -> tuple[tuple[int, ...], ...]:
        """Columns of each sample that hold a token."""
        if token_id is None:
            return ((),) * len(self.ids)
        found = self.mask & (self.ids == token_id)
        return tuple(tuple(np.flatnonzero(row).tolist()) for row in found)

    def keys(self, sample_ids: Tensor | None) -> np.ndarray:
        """A uint64 key per sample: its id or a hash of its instruction, never its place in the
        batch.
        """
        if sample_ids is not None:
            return sample_ids.cpu().numpy().astype(np.uint64)
        texts = [
            self.ids[b, begin:end].tobytes() for b, (begin, end) in enumerate(self.instruction)
        ]
        return np.array([zlib.crc32(text) for text in texts], dtype=np.uint64)

    def wanted_columns(self, keep: int | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Columns that logits are asked for, `[B, K]`, and which of them are not padding."""
        batch, width = self.mask.shape
        if torch.is_tensor(keep):
            columns = np.broadcast_to(keep.cpu().numpy(), (batch, keep.numel()))
        elif keep == 0:
            columns = np.broadcast_to(np.arange(width), (batch, width))
        else:
            ends = width - self.mask[:, ::-1].argmax(1)
            columns = np.maximum(ends[:, None] - keep + np.arange(keep), 0)
            return columns, (ends[:, None] - keep + np.arange(keep) >= 0) & (
                np.take_along_axis(self.mask, columns, axis=1)
            )
        return columns, np.take_along_axis(self.mask, columns, axis=1)


def ends(attention_mask: Tensor) -> Tensor:
    """`[B]` column after the last one that is not padding."""
    return attention_mask.shape[1] - attention_mask.flip(1).argmax(1)


def by_sample(
    grids: Sequence[Grid], owners: Sequence[int], batch: int
) -> tuple[tuple[Grid, ...], ...]:
    """The grids of each sample's images, given those of all images."""
    return tuple(
        tuple(g for g, owner in zip(grids, owners, strict=True) if owner == b) for b in range(batch)
    )
