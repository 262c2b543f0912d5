"""`Inputs`: what a compressed model is called with and its text model does not get."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpn.common.errors import SettingError
from dpn.compressed._projection import ReadImages
from dpn.compressed._tower import AttentionReader
from dpn.families import Family, Image

#: Attribute of a vision tower's output that holds the grids of its images.
LAYOUT = "dpn_layout"


class Inputs:
    """Token ids, labels and image grids of the forward pass that runs; empty between passes.

    Attributes:
        ids: Token ids `[B, T]`; None without a pass.
        images: Encoded images of each kind, see `place_spans`.
        labels: Labels `[B, T]`, or None.
        prompt: Number of columns of the prompt in `generate` without a cache, which runs the prompt
            and the answer so far in each step; otherwise None.
    """

    def __init__(self, family: Family, reader: AttentionReader | None):
        self.family, self.reader = family, reader
        self.ids: np.ndarray | None = None
        self.images: dict[str, list[Image]] = {}
        self.labels: Tensor | None = None
        self.prompt: int | None = None
        # Of the generation that runs: the prompt's columns, and whether the next pass is a step.
        self._uncached: int | None = None
        self._next_is_step = False
        self._encoding = False

    def note_step(self, columns: int, use_cache: bool | None, is_first: bool | None) -> None:
        """Prepare for a step of `generate`.

        Args:
            columns: Number of columns of the step's ids.
            use_cache: False if every step runs all columns.
            is_first: Whether the ids are the prompt.
        """
        if is_first:
            self._uncached = columns if use_cache is False else None
        self._next_is_step = True

    @contextmanager
    def of_model(self, labels: Tensor | None) -> Iterator[None]:
        """Hold the labels during a pass of the whole model: routers do not read answers."""
        self.prompt = self._uncached if self._next_is_step else None
        self.labels, self._next_is_step = labels, False
        try:
            yield
        finally:
            self.labels = self.prompt = None

    @contextmanager
    def of_inner_model(self, model: Any, given: Mapping[str, Any]) -> Iterator[None]:
        """Hold the ids and the grids of images during a pass of the inner model.

        Without `input_ids`, placeholders are the columns that hold their embedding, as in the
        stock models.
        """
        self.images = self._encoded_before(given.get("mm_encoder_outputs"))
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if ids is None and embeds is not None:
            ids = torch.zeros(embeds.shape[:2], dtype=torch.long)
            for placeholder in self.family.placeholders(model.config).values():
                one = torch.tensor([placeholder], device=embeds.device)
                same = (embeds == model.get_input_embeddings()(one)).all(-1)
                ids[same.cpu()] = placeholder
        self.ids = None if ids is None else ids.cpu().numpy()
        try:
            yield
        finally:
            self.ids, self.images = None, {}

    def encode(
        self, kind: str, call: Callable[..., Any], model: Any, args: Any, kwargs: Any
    ) -> Any:
        """Let the vision tower encode images or videos, and attach their grids to its output."""
        if self._encoding:  # Qwen3-VL encodes videos by its function for images
            return call(model, *args, **kwargs)
        self._encoding = True
        try:
            with nullcontext() if self.reader is None else self.reader.reading() as read:
                out = call(model, *args, **kwargs)
        finally:
            self._encoding = False
        if hasattr(out, "pooler_output"):  # a tuple is not given to the model
            given = bound(call, model, *args, **kwargs)
            rows = [int(np.prod(part.shape[:-1])) for part in out.pooler_output]
            images = self.family.layout(model, kind, given, rows)
            if read:
                images = ReadImages(images, self.family.parts(model, kind, given, images, read))
            self.images[kind] = images
            setattr(out, LAYOUT, images)
        return out

    def _encoded_before(self, outputs: Any) -> dict[str, list[Image]]:
        images: dict[str, list[Image]] = {}
        items = outputs.items() if isinstance(outputs, Mapping) else [("image", outputs)]
        for kind, output in items:
            if output is None:
                continue
            if not hasattr(output, LAYOUT):
                raise SettingError(
                    f"mm_encoder_outputs[{kind!r}] must be what get_{kind}_features of this"
                    " compressed model returned, which knows the grids of the images; a part of it,"
                    " as with prefill_chunk_size, is not possible."
                )
            images[kind] = getattr(output, LAYOUT)
        return images


def bound(call: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    found = signature(call).bind(*args, **kwargs).arguments
    return {**found.pop("kwargs", {}), **found}
