"""CPU copies of ids, mask and labels: columns of text, images, instructions and answers."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpn.data.batch import IGNORE
from dpn.tokens import Grid


@dataclass(frozen=True)
class HostBatch:
    """CPU copies of ids, mask and labels, made once per forward.

    Attributes:
        ids: Token ids `[B, T]`.
        mask: Attention mask, bool `[B, T]`; with a filled cache it includes the cache's columns.
        labels: Labels `[B, T]`, or None.
        instruction: First and end column of each sample's text before its first supervised token.
        instructed: Whether labels or `instruction_end` say where the instruction ends.
    """

    ids: np.ndarray
    mask: np.ndarray
    labels: np.ndarray | None
    instruction: tuple[tuple[int, int], ...]
    instructed: bool = False

    @classmethod
    def from_tensors(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        instruction_end: Tensor | None,
    ) -> "HostBatch":
        """Copy the arguments of `DPNForConditionalGeneration.forward` to the CPU."""
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
        instructed = host_labels is not None or instruction_end is not None
        return cls(ids, mask, host_labels, instruction, instructed)

    def last(self, columns: int) -> "HostBatch":
        """Return only the last `columns` columns."""
        return HostBatch(self.ids[:, -columns:], self.mask[:, -columns:], None, ())

    def columns_with(self, token_id: int | None) -> tuple[tuple[int, ...], ...]:
        """Return the columns of each sample that hold a token id; none for None."""
        if token_id is None:
            return ((),) * len(self.ids)
        found = self.mask & (self.ids == token_id)
        return tuple(tuple(np.flatnonzero(row).tolist()) for row in found)

    def keys(self, sample_ids: Tensor | None) -> np.ndarray:
        """Return a key for each sample, uint64 `[B]`: its id or a hash of its instruction, which do
        not depend on its place in the batch.
        """
        if sample_ids is not None:
            return sample_ids.cpu().numpy().astype(np.uint64)
        texts = [
            self.ids[b, begin:end].tobytes() for b, (begin, end) in enumerate(self.instruction)
        ]
        return np.array([zlib.crc32(text) for text in texts], dtype=np.uint64)

    def wanted_columns(self, keep: int | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns whose logits are requested, `[B, K]`, and a mask of those that are not
        padding.

        Args:
            keep: Number of last columns (0: all), or indices of columns.
        """
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


def end_columns(attention_mask: Tensor) -> Tensor:
    """Return the column after each sample's last one that is not padding, `[B]`."""
    return attention_mask.shape[1] - attention_mask.flip(1).argmax(1)


def by_sample(
    grids: Sequence[Grid], owners: Sequence[int], batch: int
) -> tuple[tuple[Grid, ...], ...]:
    """Group the grids of all images by sample.

    Args:
        grids: Grid of each image.
        owners: Sample of each image.
        batch: Number of samples.
    """
    return tuple(
        tuple(g for g, owner in zip(grids, owners, strict=True) if owner == b) for b in range(batch)
    )
