"""`DecoderLayer`: a stock Hugging Face decoder layer as one unit to call, checkpoint and shard."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel

from dpn.common.errors import SettingError
from dpn.decoder import within
from dpn.decoder.attention import IMPLEMENTATION, packed_attention
from dpn.decoder.projections import rotated
from dpn.decoder.rows import PlannedRows
from dpn.decoder.text_models import check_dividing, check_reading, check_text_model
from dpn.routers.base import Summary
from dpn.tokens import LayerPlan

#: Bytes of the probabilities that are held at once for a summary of them.
GROUP_BYTES = 2**26


class QueryRows(NamedTuple):
    """Query rows whose attention a router reads.

    Attributes:
        rows: Indices of the query rows in the pack, for each sample.
        offsets: First row of each sample, followed by the number of rows.
        summary: What is returned of the probabilities, see `RoutingContext.attention_scores`.
    """

    rows: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    summary: Summary | None = None


class DecoderLayer(nn.Module):
    """Wraps a Hugging Face decoder layer without changing its parameter names or its call.

    The layer's children are registered here, so state dicts are those of the stock model, and
    sharding or checkpointing hooks on this module cover everything that the layer computes.

    Args:
        layer: Decoder layer of a Llama-like model, whose parameters all belong to its children.
        kind: Model type of the text model, see `dpn.decoder.text_models`.
    """

    def __init__(self, layer: nn.Module, kind: str):
        super().__init__()
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        if own:
            raise SettingError(
                f"{type(layer).__name__} has parameters of its own ({', '.join(own)}); only layers"
                " whose parameters belong to their submodules (Llama, Qwen2, Mistral ...) are"
                " supported."
            )
        for name, child in layer.named_children():
            self.add_module(name, child)
        self.kind = kind
        self._stock = (layer,)  # in a tuple, so that the layer is not registered a second time

    def forward(
        self,
        hidden: Tensor,
        *args: Any,
        queries: QueryRows | None = None,
        plan: LayerPlan | None = None,
        rows: PlannedRows | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the layer on `[1, N, D]`; see the stock layer for the arguments.

        With `queries`, return `attention_scores` instead; with `plan`, the result of `within.run`.
        Both go through this call because sharding engines gather a module's weights only while it
        is called.
        """
        if queries is not None:
            return self.attention_scores(hidden, queries, **kwargs)
        if plan is not None and rows is not None:
            check_dividing(self.kind)
            return within.run(self, hidden, plan, rows, kwargs["position_embeddings"])
        return self._stock[0].forward(hidden, *args, **kwargs)

    @torch.compiler.disable
    def attention_scores(
        self, hidden: Tensor, queries: QueryRows, position_embeddings: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """Compute the attention probabilities of some query rows over the rows of their sample.

        Args:
            hidden: Hidden states that enter the layer, `[1, N, D]`.
            queries: R_b query rows of each sample.
            position_embeddings: Cosines and sines of the N rows.

        Returns:
            Causal attention probabilities of each sample, fp32 `[R_b, H, n_b]`, or their summary.

        Raises:
            SettingError: If the text model computes its attention in another way.
        """
        check_reading(self.kind)
        attention: Any = self.self_attn
        if not (hasattr(attention, "q_proj") and hasattr(attention, "k_proj")):
            raise SettingError(
                f"{type(attention).__name__} has no q_proj and k_proj, so routers cannot read its"
                " attention; use a text model like Llama, Qwen2, Qwen3 or Mistral."
            )
        normed = self.input_layernorm(hidden[0])  # type: ignore[operator]
        flat = [row for rows in queries.rows for row in rows]
        index = torch.tensor(flat, dtype=torch.long).to(hidden.device)
        cos, sin = (x[0] for x in position_embeddings)
        asked = rotated(attention, "q", normed[index], cos[index], sin[index])  # [R, H, Dh]
        keys = rotated(attention, "k", normed, cos, sin)  # [N, Hkv, Dh]
        counts = [len(rows) for rows in queries.rows]
        lengths = [b - a for a, b in zip(queries.offsets, queries.offsets[1:], strict=False)]
        place = index - index.new_tensor(queries.offsets[:-1]).repeat_interleave(
            index.new_tensor(counts)
        )
        return [
            _summarised(q, k, p, attention.scaling, queries.summary)
            for q, k, p in zip(
                asked.split(counts), keys.split(lengths), place.split(counts), strict=True
            )
        ]


def _summarised(
    query: Tensor, key: Tensor, place: Tensor, scaling: float, summary: Summary | None
) -> Tensor:
    """Compute the probabilities of `_probabilities`, or the summary of a few heads at a time: the
    probabilities of all heads may not fit in memory.
    """
    if summary is None:
        return _probabilities(query, key, place, scaling)
    heads, each = query.shape[1], len(query) * len(key) * 4
    count = max(1, GROUP_BYTES // max(each, 1))
    if count >= heads:
        return summary(_probabilities(query, key, place, scaling))
    group = heads // key.shape[1]
    parts = []
    for first in range(0, heads, count):
        some = torch.arange(first, min(first + count, heads), device=key.device)
        probs = _probabilities(query[:, some], key[:, some // group], place, scaling)
        parts.append(summary(probs))
    return torch.cat(parts)


def _probabilities(query: Tensor, key: Tensor, place: Tensor, scaling: float) -> Tensor:
    """Compute the causal attention probabilities of one sample, fp32 `[R, H, n]`.

    Args:
        query: Queries `[R, H, Dh]`.
        key: Keys of the sample, `[n, Hkv, Dh]`.
        place: Place of each query in the sample, `[R]`.
        scaling: Factor of the scores.
    """
    grouped = query.float().unflatten(1, (key.shape[1], -1))  # [R, Hkv, H / Hkv, Dh]
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.einsum("rkgd,nkd->rkgn", grouped, key.float()).flatten(1, 2).mul_(scaling)
    hidden = torch.arange(key.shape[0], device=key.device) > place[:, None]  # [R, n]
    return scores.masked_fill_(hidden[:, None], -torch.inf).softmax(-1)


def compile_layers(language: Any) -> None:
    """Compile the layers with `torch.compile` for any number of rows, except their attention.

    Compilation happens during the first steps.
    """
    # Attention is not compiled: its lengths differ in every batch.
    AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(packed_attention))
    for layer in language.layers:
        layer.compile(dynamic=True)


def build_language(text_config: Any) -> Any:
    """Build a stock Hugging Face text model without head, with each layer in a `DecoderLayer`.

    Raises:
        SettingError: If the decoder loop does not compute the model exactly.
    """
    check_text_model(text_config)
    # A copy: building another model from the same config would change this model's attention.
    text_config = copy.deepcopy(text_config)
    language = AutoModel.from_config(text_config, attn_implementation=IMPLEMENTATION)
    language.layers = nn.ModuleList(
        DecoderLayer(layer, text_config.model_type) for layer in language.layers
    )
    return language
