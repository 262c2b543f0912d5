"""`DPNForConditionalGeneration`: a stock text model with a router that reduces visual rows between
its layers.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, logging

from dpn.common.checksums import write_checksums
from dpn.common.distributed import connect, several_processes
from dpn.common.errors import SettingError
from dpn.common.marks import marked
from dpn.common.seeded import mix
from dpn.data.batch import IGNORE
from dpn.decoder.backends import BackendName
from dpn.decoder.cache import RaggedCache
from dpn.decoder.layer import build_language
from dpn.decoder.loop import append, prefill
from dpn.model.arguments import check_arguments
from dpn.model.assemble import build_router, build_vision
from dpn.model.configuration import DPNConfig
from dpn.model.cross_entropy import cross_entropy
from dpn.model.folder import FolderMixin
from dpn.model.generation import RaggedGenerationMixin
from dpn.model.inputs import HostBatch, by_sample
from dpn.model.questions import read_questions
from dpn.model.training_tools import TrainingToolsMixin, keep_instruction_end, uncompiled
from dpn.routers.base import Router, RoutingContext
from dpn.tokens import CellMap, Grid, PackedTokens, Positions, Trace, pack
from dpn.vision import ImageContext, VisualFeatures

log = logging.get_logger(__name__)


@dataclass
class DPNOutput(ModelOutput):
    """Output of `DPNForConditionalGeneration.forward`.

    Attributes:
        loss: Language loss, if labels were given.
        logits: Logits `[B, K, vocabulary]` of the requested columns; None in training.
        past_key_values: The ragged cache, if one was given or requested.
        trace: Rows of every layer and all decisions.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: RaggedCache | None = None
    trace: Trace | None = None


class DPNForConditionalGeneration(
    RaggedGenerationMixin, TrainingToolsMixin, FolderMixin, PreTrainedModel
):
    """A vision tower, a projector, and a stock text model with a router between its layers.

    Args:
        config: Sizes and parts of the model.
        empty_language: Whether text model and language head take no memory until their weights are
            loaded, see `dpn.checkpoints.load`.
    """

    config_class = DPNConfig
    base_model_prefix = "language"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _no_split_modules = ("DecoderLayer",)
    _keep_in_fp32_modules_strict = ("router",)
    _tied_weights_keys = {"lm_head.weight": "language.embed_tokens.weight"}  # noqa: RUF012
    _skip_keys_device_placement = ("past_key_values",)

    def __init__(self, config: DPNConfig, empty_language: bool = False):
        super().__init__(config)
        text: Any = config.text_config
        self.vision, self.projector = build_vision(config)
        self.projector.attach(self.vision)
        with _no_memory() if empty_language else nullcontext():
            self.language = build_language(text)
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        # The router leaves the random state as it was: the other weights do not depend on it.
        with torch.random.fork_rng(devices=[]):
            self.router = build_router(config, self.vision, self.projector)
        #: Attention backend of prefill and training, see `dpn.decoder.attention`.
        self.attention: BackendName = "auto"
        #: Whether decoder layers are recomputed in the backward pass.
        self.checkpoint_layers = False
        self.register_forward_pre_hook(keep_instruction_end, with_kwargs=True)
        self.post_init()
        if self.generation_config is not None:  # an answer never contains an image
            self.generation_config.suppress_tokens = [config.image_token_id]

    def _init_weights(self, module: nn.Module) -> None:
        # Called for modules outside Hugging Face's submodels: projector and router keep PyTorch's
        # initialisation.
        if module is self.lm_head:
            super()._init_weights(module)
        elif (reset := getattr(module, "reset_parameters", None)) is not None:
            reset()

    def get_input_embeddings(self) -> nn.Module:
        """Return the text model's embeddings."""
        return self.language.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text model's embeddings."""
        self.language.embed_tokens = value

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save like Hugging Face, but with the parameter names of this model: by default Hugging
        Face would write the names of older vision towers. Checksums of the weights are added.
        """
        super().save_pretrained(save_directory, **{"save_original_format": False, **kwargs})
        if kwargs.get("is_main_process", True):
            write_checksums(Path(save_directory))

    # Forward

    @uncompiled
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_sample: Tensor | None = None,
        sample_ids: Tensor | None = None,
        step: int = 0,
        seed: int = 0,
        instruction_end: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: RaggedCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        compress: bool = True,
        router: Router | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DPNOutput | tuple[Any, ...]:
        """Run the model: a prefill or training pass, or with a filled cache a decoding step.

        Args:
            input_ids: Token ids `[B, T]`, with one `<image>` id per image.
            attention_mask: Mask `[B, T]`, 0 for padding on the left or right; with a filled cache
                it includes the cache's columns.
            labels: Target ids `[B, T]`, -100 where not supervised.
            pixel_values: Pixels `[I, 3, Hmax, Wmax]`, with each image in the upper left corner.
            image_sizes: Height and width of each image in pixels, `[I, 2]`; default: the size of
                `pixel_values`.
            image_sample: Sample of each image, `[I]`, ascending; default: in the order of the
                `<image>` ids.
            sample_ids: Integer keys `[B]` for the sampling of routes; default: a hash of the
                instruction.
            step: Optimizer step, a key for the sampling of routes.
            seed: Seed of the run, a key for the sampling of routes.
            instruction_end: Column after each sample's instruction, `[B]`, used without labels;
                default: the end of the sample.
            num_items_in_batch: Number that the sum of the tokens' losses is divided by; default:
                the number of supervised tokens.
            past_key_values: An empty cache to fill, or a filled one to append text to.
            use_cache: Whether to fill a new cache.
            logits_to_keep: Number of last columns that get logits (0: all), or indices of columns.
                Padding on the right is not counted; logits of padding columns are zero.
            return_logits: Whether to return logits; default: True, except in training with labels,
                where only the logits of supervised rows are computed.
            compress: Whether the router acts; False computes the same as `router=none`.
            router: Router that acts in place of the model's own, with its own `positions`.
            return_dict: Whether to return a `DPNOutput` (default) or a tuple of what it holds.
            kwargs: Further arguments of Hugging Face's models, see `dpn.model.arguments`.

        Raises:
            ValueError: If images and `<image>` ids do not match, or the attention mask has holes.
            SettingError: If an argument of Hugging Face's models matters and is not supported.
        """
        kwargs.setdefault("output_hidden_states", self.config.output_hidden_states)
        check_arguments(kwargs, input_ids, attention_mask)
        assert input_ids is not None
        if past_key_values is not None and not isinstance(past_key_values, RaggedCache):
            raise SettingError(
                f"past_key_values is a {type(past_key_values).__name__}; this model needs a"
                " dpn.decoder.cache.RaggedCache (leave it out, and generate creates one)."
            )
        host = HostBatch.from_tensors(input_ids, attention_mask, labels, instruction_end)
        if past_key_values is not None and past_key_values.get_seq_length():
            out = self._append(input_ids, host, past_key_values, logits_to_keep)
            return out if return_dict is not False else out.to_tuple()
        cache = past_key_values
        if cache is None and use_cache:
            cache = RaggedCache()
        images = (pixel_values, image_sizes, image_sample)
        keys = (host.keys(sample_ids), seed, int(step))
        tokens, trace = self._run_layers(input_ids, host, images, keys, cache, compress, router)
        loss = None
        if host.labels is not None:
            loss = self._loss(tokens, host, num_items_in_batch, trace)
        if return_logits is None:
            return_logits = loss is None or not self.training
        logits = self._logits(tokens, host, logits_to_keep) if return_logits else None
        out = DPNOutput(loss=loss, logits=logits, past_key_values=cache, trace=trace)
        return out if return_dict is not False else out.to_tuple()

    @uncompiled
    def hidden_states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_sample: Tensor | None = None,
        sample_ids: Tensor | None = None,
        instruction_end: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Compute what the language head reads, after the last norm; see `forward`.

        Returns:
            `last_hidden_state [B, T, D]`: for an `<image>` column that of the image's last row, for
            padding zeros.
        """
        check_arguments(kwargs, input_ids, attention_mask)
        assert input_ids is not None
        host = HostBatch.from_tensors(input_ids, attention_mask, None, instruction_end)
        images = (pixel_values, image_sizes, image_sample)
        tokens, _ = self._run_layers(input_ids, host, images, (host.keys(sample_ids), 0, 0))
        rows = tokens.hidden[tokens.rows_of_columns(*np.nonzero(host.mask))]
        return BaseModelOutput(last_hidden_state=_spread(self.language.norm(rows), host.mask))

    def _run_layers(
        self,
        input_ids: Tensor,
        host: HostBatch,
        images: tuple[Tensor | None, Tensor | None, Tensor | None],
        keys: tuple[np.ndarray, int, int],
        cache: RaggedCache | None = None,
        compress: bool = True,
        router: Router | None = None,
    ) -> tuple[PackedTokens, Trace]:
        """Pack text and images and run all layers; fill the cache and a new trace.

        Args:
            input_ids: Token ids `[B, T]`.
            host: CPU copies of the arguments.
            images: `pixel_values`, `image_sizes` and `image_sample` of `forward`.
            keys: Key of each sample, seed and step for the sampling of routes.
            cache: Empty cache to fill.
            compress: Whether the router acts.
            router: Router that acts in place of the model's own.
        """
        trace = Trace((), ())
        context = RoutingContext(
            instruction=host.instruction,
            router_columns=host.columns_with(self.config.router_token_id),
            keys=keys[0],
            training=self.training,
            seed=keys[1],
            step=keys[2],
            trace=trace,
        )
        acting = router or self.router
        if self.training and compress and not host.instructed and acting.acts != "nowhere":
            log.warning_once(
                "Neither labels nor instruction_end were given in training, so the router reads the"
                " answers as a part of the questions; give one of them."
            )
        tokens = self._pack(input_ids, host, context, acting.positions, *images)
        tokens = prefill(
            self.language,
            acting if compress else Router(**self.router.sizes),
            tokens,
            context,
            self.attention,
            cache,
            self.checkpoint_layers and self.training,
        )
        if cache is not None:
            cache.columns, cache.trace = input_ids.shape[1], trace
        return tokens, trace

    def _pack(
        self,
        input_ids: Tensor,
        host: HostBatch,
        context: RoutingContext,
        positions: Positions,
        pixel_values: Tensor | None,
        image_sizes: Tensor | None,
        image_sample: Tensor | None,
    ) -> PackedTokens:
        """Embed text, encode images, pack both, and record the images' grids in the trace."""
        batch = len(host.ids)
        is_image = host.mask & (host.ids == self.config.image_token_id)
        places = [(int(b), int(c)) for b, c in np.argwhere(is_image)]
        images = 0 if pixel_values is None else len(pixel_values)
        owners = [b for b, _ in places] if image_sample is None else image_sample.tolist()
        marks = is_image.sum(1)
        given = np.bincount(owners, minlength=batch) if owners else np.zeros(batch, dtype=int)
        if len(owners) != images or sorted(owners) != owners or not np.array_equal(marks, given):
            raise SettingError(
                f"<image> tokens per sample are {marks.tolist()}, images per sample are"
                f" {given.tolist()} ({images} in pixel_values); give one image per <image>, in the"
                " order of the samples."
            )
        text_index = np.flatnonzero(host.mask & ~is_image)
        text = self._embed(input_ids, text_index)
        visual: Sequence[Tensor] = ()
        grids: tuple[Grid, ...] = ()
        tower_grids: tuple[Grid, ...] = ()
        sources: list[CellMap | None] = []
        if pixel_values is not None and images:
            if image_sizes is None:
                sizes = [(pixel_values.shape[2], pixel_values.shape[3])] * images
            else:
                sizes = [(h, w) for h, w in image_sizes.tolist()]
            tower_grids = tuple(self.vision.grid_of(*size) for size in sizes)
            seen = image_context(text, text_index, host.ids.shape[1], owners, context)
            seen = self._with_questions(seen, owners, batch, context.trace)
            features = self._project(pixel_values, sizes, tower_grids, seen)
            visual, grids = features.per_image(), features.grids
            visual = [rows.to(text.dtype) for rows in visual]
            sources = [
                None if owner is None else (owner, self.projector.tower_grid(grid))
                for owner, grid in zip(features.owners or [None] * images, tower_grids, strict=True)
            ]
        elif several_processes() or (self.training and torch.is_grad_enabled()):  # see `connect`
            size = self.vision.image_size
            nothing = ImageContext((text.new_zeros(1, text.shape[1]),), np.zeros(1, np.uint64))
            nothing = self._with_questions(nothing, [0], 1, Trace((), ()))
            blank = text.new_zeros(1, 3, size, size)
            features = self._project(blank, [(size, size)], (self.vision.grid,), nothing)
            text = connect(text, [features.tokens])
        context.trace.tower_grids = by_sample(tower_grids, owners, batch)
        context.trace.grids = by_sample(grids, owners, batch)
        return pack(text, host.mask, places, visual, grids, positions, sources)

    def _embed(self, input_ids: Tensor, text_index: np.ndarray) -> Tensor:
        """Embed the text columns of `[B, T]` ids, `[n, D]`.

        The module embeds the whole `[B, T]`, as in Hugging Face's models: hooks such as NEFTune's
        need its shape.
        """
        is_image = input_ids == self.config.image_token_id
        text = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0)).flatten(0, 1)
        if len(text_index) < len(text):
            text = text[torch.from_numpy(text_index).to(text.device, non_blocking=True)]
        return text

    def _with_questions(
        self, context: ImageContext, owners: Sequence[int], batch: int, trace: Trace
    ) -> ImageContext:
        """Add what the decoder reads in the instructions, if the projector needs it.

        Args:
            context: Context of the projector.
            owners: Sample of each image, `[I]`.
            batch: Number of samples.
            trace: Trace of the pass, in which the rows that are read are recorded.
        """
        if not self.projector.reads_question:
            return context
        texts = dict(zip(owners, context.instructions, strict=True))
        read = read_questions(self.language, self.router, [*texts.values()], self.attention)
        place = {owner: i for i, owner in enumerate(texts)}
        index = torch.tensor([place[owner] for owner in owners]).to(read.device)
        trace.question_rows = tuple(
            max(1, len(texts[b])) if b in texts else 0 for b in range(batch)
        )
        return replace(context, questions=read[index])

    def _project(
        self,
        pixel_values: Tensor,
        sizes: list[tuple[int, int]],
        grids: tuple[Grid, ...],
        context: ImageContext,
    ) -> VisualFeatures:
        """Encode images with the vision tower and the projector."""
        shown, sizes = self.projector.resize_images(pixel_values.to(self.dtype), sizes, grids)
        features = self.vision.features(shown, sizes)
        return self.projector(replace(features, context=context))

    def _head(self, hidden: Tensor) -> Tensor:
        """Compute the logits of rows `[n, D]` after the last layer."""
        return self.lm_head(self.language.norm(hidden))

    @marked("head")
    def _loss(
        self, tokens: PackedTokens, host: HostBatch, num_items: Tensor | int | None, trace: Trace
    ) -> Tensor:
        """Compute the cross entropy of supervised tokens, each predicted by the column before it;
        record each sample's loss and predicted tokens in the trace.
        """
        assert host.labels is not None
        supervised = host.mask[:, 1:] & host.mask[:, :-1] & (host.labels[:, 1:] != IGNORE)
        samples, columns = np.nonzero(supervised)
        if num_items is not None and (host.labels[:, 1:] != IGNORE).sum() > len(samples):
            log.warning_once(
                "num_items_in_batch was given, but some labels cannot be predicted: those of"
                " padding and of the first token after padding on the left. Trainer counts them;"
                " set them to -100, or accumulated gradients differ from those of a large batch."
            )
        targets = torch.from_numpy(host.labels[samples, columns + 1]).to(tokens.hidden.device)
        hidden = tokens.hidden[tokens.rows_of_columns(samples, columns)]
        logits = self._head(hidden)
        losses = cross_entropy(logits, targets)
        each = supervised.sum(1)
        counts = torch.from_numpy(each).to(losses)
        owners = torch.from_numpy(samples).to(losses.device)
        trace.sample_loss = torch.zeros_like(counts).index_add(0, owners, losses.detach()) / counts
        trace.predicted = logits.detach().argmax(-1).split(each.tolist())
        if num_items is None:
            num_items = len(samples)
        if not torch.is_tensor(num_items):
            num_items = max(num_items, 1)  # without supervised tokens the loss is zero, not NaN
        return losses.sum() / num_items

    @marked("head")
    def _logits(self, tokens: PackedTokens, host: HostBatch, keep: int | Tensor) -> Tensor:
        """Return the logits of the requested columns, `[B, K, vocabulary]`."""
        columns, valid = host.wanted_columns(keep)
        samples = np.broadcast_to(np.arange(len(columns))[:, None], columns.shape)[valid]
        hidden = tokens.hidden[tokens.rows_of_columns(samples, columns[valid])]
        return _spread(self._head(hidden), valid)

    def _append(
        self, input_ids: Tensor, host: HostBatch, cache: RaggedCache, keep: int | Tensor
    ) -> DPNOutput:
        """Append text columns to a filled cache; routes stay those of the prefill."""
        new = host.last(input_ids.shape[1])
        if (new.ids == self.config.image_token_id)[new.mask].any():
            raise ValueError(
                "An image cannot be appended to a filled cache; start a new cache with the whole"
                " conversation."
            )
        flat = torch.from_numpy(np.flatnonzero(new.mask)).to(input_ids.device)
        embeddings = self.language.embed_tokens(input_ids.flatten()[flat])
        counts = new.mask.sum(1).tolist()
        hidden = append(self.language, embeddings, counts, cache)
        cache.columns += input_ids.shape[1]
        columns, valid = new.wanted_columns(keep)
        row_of = (new.mask.cumsum() - 1).reshape(new.mask.shape)
        valid &= np.take_along_axis(new.mask, columns, axis=1)
        rows = np.take_along_axis(row_of, columns, axis=1)[valid]
        logits = _spread(self._head(hidden[torch.from_numpy(rows).to(hidden.device)]), valid)
        return DPNOutput(logits=logits, past_key_values=cache, trace=cache.trace)


def meta_model(config: DPNConfig) -> DPNForConditionalGeneration:
    """Build a model on the meta device, where tensors have a shape but no memory."""
    with torch.device("meta"):
        return DPNForConditionalGeneration(config)


def _no_memory() -> AbstractContextManager[None]:
    """Return a context in which parameters, but not buffers, are created on the meta device."""
    from accelerate import init_empty_weights  # only here: timing a model needs torch alone

    return init_empty_weights()


def image_context(
    text: Tensor, text_index: np.ndarray, width: int, owners: Sequence[int], context: RoutingContext
) -> ImageContext:
    """Build the context of a projector.

    Args:
        text: Text embeddings `[n, D]`.
        text_index: Place of each embedding in the flat `[B, width]` ids, `[n]`.
        width: Number of columns of the ids.
        owners: Sample of each image, `[I]`, ascending.
        context: Routing context of the samples.
    """
    edges = [b * width + np.array(context.instruction[b]) for b in owners]
    rows = np.searchsorted(text_index, np.reshape(edges, (-1, 2)))
    place = np.array([owners[:i].count(b) for i, b in enumerate(owners)], dtype=np.uint64)
    return ImageContext(
        tuple(text[first:end] for first, end in rows.tolist()),
        context.keys[list(owners)].astype(np.uint64) ^ mix(place),
        context.training,
        context.seed,
        context.step,
    )


def _spread(logits: Tensor, valid: np.ndarray) -> Tensor:
    """Spread the logits `[n, vocabulary]` of the valid places to `[B, K, vocabulary]`, with zeros
    elsewhere.
    """
    if valid.all():
        return logits.unflatten(0, valid.shape)
    full = logits.new_zeros(*valid.shape, logits.shape[-1])
    full[torch.from_numpy(valid).to(logits.device)] = logits
    return full
