"""`RaggedCache`: a key/value cache whose layers may hold different numbers of rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from dpn.common.errors import SettingError
from dpn.tokens import PackedTokens, Trace

#: Number of places added when a layer's buffer is full.
ROOM = 64


@dataclass
class Stage:
    """State shared by all layers that hold the same rows.

    Attributes:
        lengths: Number of rows that each sample holds, `[B]`, on the CPU.
        positions: Rotary position of each sample's next row, counted from its last one (on the
            first axis), `[B]`, on the CPU.
        places: Sample and place in the buffer of each row at prefill, `[N]` each.
    """

    lengths: Tensor
    positions: Tensor
    places: tuple[Tensor, Tensor]

    def select(self, index: Tensor) -> None:
        """Select samples by index, in place."""
        self.lengths, self.positions = self.lengths[index], self.positions[index]


class RaggedCache(Cache):
    """Keys and values per layer and sample, padded to the layer's longest sample.

    `get_seq_length` counts columns of `input_ids`, as `generate` expects, not rows.

    Attributes:
        trace: Trace of the prefill.
        columns: Number of `input_ids` columns processed so far, padding included.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []  # [B, Hkv, room, Dh] per layer
        self.values: list[Tensor] = []
        self.stage_of: list[Stage] = []
        self.trace: Trace | None = None
        self.columns = 0

    # Filling

    def stage(self, tokens: PackedTokens) -> Stage:
        """Create the stage of the layers that hold the rows of `tokens` at prefill."""
        lengths, offsets = torch.tensor(tokens.lengths), torch.tensor(tokens.offsets)
        sample = torch.arange(len(lengths)).repeat_interleave(lengths)
        places = (sample, torch.arange(len(sample)) - offsets[sample])
        device = tokens.hidden.device
        return Stage(
            lengths,
            tokens.positions.cpu().reshape(-1, len(sample))[0, offsets[1:] - 1] + 1,
            (places[0].to(device), places[1].to(device)),
        )

    def write(self, stage: Stage, key: Tensor, value: Tensor) -> None:
        """Add a layer with its keys and values at prefill, `[N, Hkv, Dh]` each."""
        self.keys.append(_pad(key, stage))
        self.values.append(_pad(value, stage))
        self.stage_of.append(stage)

    def append(self, layer: int, places: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> None:
        """Add a layer's new keys and values `[M, Hkv, Dh]` at `places`: (sample, place), `[M]`
        each.
        """
        for store, new in ((self.keys, key), (self.values, value)):
            store[layer][places[0], :, places[1]] = new

    def make_room(self, rows: int) -> None:
        """Enlarge every layer's buffer to hold `rows` more rows than its longest sample has."""
        for layer, stage in enumerate(self.stage_of):
            missing = int(stage.lengths.max()) + rows - self.keys[layer].shape[2]
            if missing > 0:
                grow = (0, 0, 0, max(missing, ROOM))
                self.keys[layer] = torch.nn.functional.pad(self.keys[layer], grow)
                self.values[layer] = torch.nn.functional.pad(self.values[layer], grow)

    @property
    def stages(self) -> list[Stage]:
        """The distinct stages, in the order of the layers."""
        return list({id(stage): stage for stage in self.stage_of}.values())

    # Interface of Hugging Face's `Cache`

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of `input_ids` columns processed so far."""
        return self.columns

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def is_compileable(self) -> bool:
        """False: the lengths of layers and samples differ."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether prefill has happened."""
        return bool(self.keys)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select samples by index, for beam search."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select samples by index."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        batch = len(self.stage_of[0].lengths)
        self._select(torch.arange(batch).repeat_interleave(repeats))

    def _select(self, index: Tensor) -> None:
        for store in (self.keys, self.values):
            store[:] = [x.index_select(0, index.to(x.device)) for x in store]
        for stage in self.stages:
            stage.select(index.cpu())

    def reset(self) -> None:
        """Empty the cache."""
        self.__init__()  # type: ignore[misc]

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Raise a SettingError: only the layer loop fills this cache."""
        raise SettingError(
            "past_key_values was filled by a model that reduces visual tokens, and another model"
            " cannot continue it; give the other model the whole conversation."
        )

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Raise a SettingError: reduced rows cannot be removed column by column."""
        raise SettingError(
            "A ragged cache cannot be cropped, so assisted decoding is not supported; call generate"
            " without an assistant model."
        )


def _pad(rows: Tensor, stage: Stage) -> Tensor:
    """Pad `[N, Hkv, Dh]` to `[B, Hkv, longest + ROOM, Dh]`."""
    batch, longest = len(stage.lengths), int(stage.lengths.max())
    buffer = rows.new_zeros(batch, rows.shape[1], longest + ROOM, rows.shape[2])
    buffer[stage.places[0], :, stage.places[1]] = rows
    return buffer
