"""`Sample` and `Batch`, the plain tensors that the data pipeline gives to a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dpn.common.errors import DPNError

IGNORE = -100
"""Label of a token that is not supervised, as PyTorch and Hugging Face have it."""
PaddingSide = Literal["left", "right"]


class DataError(DPNError, ValueError):
    """An error in the data itself, described in one sentence; `on_error` decides how to react."""


@dataclass(frozen=True)
class Sample:
    """One conversation with its images.

    Attributes:
        input_ids: Token ids, starting with BOS, with one `<image>` id per image.
        labels: One label per id, -100 where the id is not supervised.
        images: Normalised images, `[3, H, W]` each; sizes may differ.
        sample_id: Row number in the file; seeds the sampling of routes.
        meta: Metadata that metrics group by, such as id, family and difficulty.
    """

    input_ids: list[int]
    labels: list[int]
    images: list[Tensor] = field(default_factory=list)
    sample_id: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass  # not frozen: Lightning's DeepSpeed precision refuses frozen ones
class Batch:
    """B padded samples and their I images.

    Attributes:
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, 1 for ids, 0 for padding.
        labels: `[B, T]`, -100 where not supervised.
        sample_ids: `[B]`.
        pixel_values: `[I, 3, Hmax, Wmax]`, zeros below and right of smaller images; None without
            images.
        image_sizes: `[I, 2]` height and width in pixels.
        image_sample: `[I]`, index of the sample that each image belongs to, ascending.
        meta: Metadata of each sample.
        num_supervised: Number of labels in the shifted loss, `labels[:, 1:] != -100`.
        window_tokens: Sum of `num_supervised` over this rank's accumulation window.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    sample_ids: Tensor
    pixel_values: Tensor | None = None
    image_sizes: Tensor | None = None
    image_sample: Tensor | None = None
    meta: list[dict[str, Any]] = field(default_factory=list)
    num_supervised: int = 0
    window_tokens: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the tensors for a model's forward, without those that are None."""
        return self._tensors()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Copy the batch to another device.

        `image_sizes`, `image_sample` and `sample_ids` stay on the CPU: they are read as plain
        numbers (grids, spans, route seeds), and reading them back from a GPU would synchronise.
        """
        host = ("image_sizes", "image_sample", "sample_ids")
        moved = {
            name: tensor.to(device, non_blocking=non_blocking)
            for name, tensor in self._tensors().items()
            if name not in host
        }
        return replace(self, **moved)  # type: ignore[arg-type]

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory; the DataLoader calls this."""
        pinned = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return replace(self, **pinned)  # type: ignore[arg-type]


def pad_ids(
    rows: Sequence[Sequence[int]], fill: int, padding_side: PaddingSide = "right"
) -> tuple[Tensor, Tensor]:
    """Pad lists of ids to `[B, T]` and return them with their mask `[B, T]`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if padding_side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids, mask


def stack_images(images: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Stack each sample's images into the flat image tensors of a `Batch`; empty without images."""
    flat = [image for own in images for image in own]
    if not flat:
        return {}
    sizes = torch.tensor([image.shape[-2:] for image in flat])
    height, width = sizes.amax(0).tolist()
    pixels = flat[0].new_zeros(len(flat), 3, height, width)
    for canvas, image in zip(pixels, flat, strict=True):
        canvas[:, : image.shape[-2], : image.shape[-1]] = image
    owner = [sample for sample, own in enumerate(images) for _ in own]
    return {"pixel_values": pixels, "image_sizes": sizes, "image_sample": torch.tensor(owner)}


def collate(
    samples: Sequence[Sample], pad_token_id: int, padding_side: PaddingSide = "right"
) -> Batch:
    """Pad samples to the longest one and stack their images."""
    input_ids, attention_mask = pad_ids([s.input_ids for s in samples], pad_token_id, padding_side)
    labels, _ = pad_ids([s.labels for s in samples], IGNORE, padding_side)
    supervised = int((labels[:, 1:] != IGNORE).sum())
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        sample_ids=torch.tensor([s.sample_id for s in samples]),
        **stack_images([s.images for s in samples]),
        meta=[s.meta for s in samples],
        num_supervised=supervised,
        window_tokens=supervised,
    )
