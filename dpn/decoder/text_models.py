"""Which Hugging Face text models the decoder loop computes exactly.

The loop runs the stock layers, but not the stock model's own `forward`. It is therefore exact
only for models that do nothing else between embeddings and language head. The tests try every
causal language model of the installed transformers with random weights: logits of padded batches,
decoding from the cache, and every number and switch of the config.
"""

from typing import Any

from dpn.common.errors import SettingError

#: Models whose logits, also those from the cache, equal Hugging Face's.
EXACT = frozenset(
    [
        *("apertus", "arcee", "aria_text", "bitnet", "cwm", "ernie4_5", "ernie4_5_moe", "exaone4"),
        *("exaone_moe", "flex_olmo", "gemma", "glm", "glm4", "glm4_moe", "granite", "granitemoe"),
        *("granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3"),
        *("hyperclovax", "internlm3", "iquestcoder", "jais2", "jetmoe", "llama", "minimax_m2"),
        *("minimax_m3_vl_text", "mistral", "mixtral", "olmo", "olmo2", "olmoe", "phi3", "phimoe"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2"),
    ]
)
#: Text models of VLMs that are exact with the positions and features that the whole model gives.
GIVEN_POSITIONS = frozenset(["qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"])
#: Of these, models whose attention probabilities `DecoderLayer.attention_scores` computes exactly.
READABLE = (EXACT | GIVEN_POSITIONS) - frozenset(
    [
        *("apertus", "exaone4", "exaone_moe", "flex_olmo", "hunyuan_v1_dense", "hunyuan_v1_moe"),
        *("jetmoe", "minimax_m2", "olmo2", "olmoe", "phi3", "smollm3"),
    ]
)
#: Of these, models whose layers `dpn.decoder.within` computes exactly.
DIVISIBLE = frozenset(
    [
        *("cwm", "ernie4_5", "gemma", "helium", "internlm3", "iquestcoder", "llama", "mistral"),
        *("olmo", "qwen2", "qwen3", "seed_oss", *GIVEN_POSITIONS),
    ]
)
#: Settings that act outside of the layers, with the values that change nothing.
OUTSIDE = {
    "embedding_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "lm_head_bias": (None, False),
}
MAX_LAYERS = 1024


def check_text_model(config: Any, given_positions: bool = False) -> None:
    """Check that the decoder loop computes a text model exactly.

    Args:
        config: Hugging Face config of the text model.
        given_positions: Whether a whole VLM gives the positions.

    Raises:
        SettingError: If it does not; names the model type or the setting.
    """
    kind = config.model_type
    if kind not in (EXACT | GIVEN_POSITIONS if given_positions else EXACT):
        raise SettingError(
            f"The text model {kind!r} is not supported, because it computes more than its decoder"
            " layers, or in another way; use one like llama, mistral, qwen2, qwen3, gemma or phi3"
            " (all: dpn.decoder.text_models.EXACT)."
        )
    layers = config.num_hidden_layers
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise SettingError(
            f"num_hidden_layers={layers} of the text model must be between 1 and {MAX_LAYERS}."
        )
    window = getattr(config, "sliding_window", None)
    types = {*(getattr(config, "layer_types", None) or ())}  # decide about windows where they exist
    if "sliding_attention" in types or (not types and window is not None):
        switched = hasattr(config, "use_sliding_window")
        fix = "use_sliding_window=false" if switched else "sliding_window=null"
        raise SettingError(
            f"sliding_window={window} of the text model {kind} is not supported, since visual rows"
            f" are removed between layers; set {fix} in its config, and layer_types, if it has"
            " them, to full_attention."
        )
    if other := types - {"full_attention"}:
        raise SettingError(
            f"layer_types of the text model {kind} hold {', '.join(sorted(other))}; only"
            " full_attention is supported."
        )
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    if heads < 1 or shared < 1 or heads % shared:
        raise SettingError(
            f"num_attention_heads={heads} of the text model is not a multiple of"
            f" num_key_value_heads={shared}."
        )
    settings = OUTSIDE | ({"use_bias": (None, False)} if kind == "ernie4_5_moe" else {})
    for name, neutral in settings.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise SettingError(
                f"{name}={value} of the text model {kind} is not supported, because it acts outside"
                f" of the decoder layers; only {name}={neutral[-1]} is."
            )


def check_reading(kind: str) -> None:
    """Raise an SettingError if routers cannot read the attention of a text model."""
    if kind not in READABLE:
        raise SettingError(
            f"Routers cannot read the attention of the text model {kind!r}; use one of"
            f" {', '.join(sorted(READABLE))}, or a router that does not read attention."
        )


def check_dividing(kind: str) -> None:
    """Raise an SettingError if routers cannot compute parts of a text model's layers."""
    if kind not in DIVISIBLE:
        raise SettingError(
            f"Routers cannot act within the layers of the text model {kind!r}; use one of"
            f" {', '.join(sorted(DIVISIBLE))}, or a router that acts between layers."
        )
