"""Text models that a LLaVA folder may have, read from its config."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from dpn.common.errors import FileError

Node = dict[str, Any]

#: Model types whose whole forward pass is embedding, layers, norm and head, as the decoder computes
#: it; `tests/checkpoints/test_text_models.py` converts each. Routers that read attention need the
#: separate projections of all but `phi3`.
TEXT_MODELS = ("llama", "mistral", "phi3", "qwen2", "qwen3")
#: Keys of a text config, which an original config holds in addition to LLaVA's own.
TEXT_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "attention_bias"),
    *("original_max_position_embeddings", "mlp_bias", "initializer_range", "tie_word_embeddings"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def original_text(file: Path, config: Node) -> Node:
    """Return the text config of an original LLaVA config, which names its class, such as
    `LlavaMistralForCausalLM`, or at least its model type, such as `llava_mistral`.

    Raises:
        FileError: If the text model is unknown or not supported.
    """
    named = config.get("architectures") or [config.get("model_type")]
    name = str(named[0]) if isinstance(named, list) else str(named)
    match = re.fullmatch(r"(?:llava_?)?(\w*?)(?:ForCausalLM)?", name, re.IGNORECASE)
    kind = match[1].lower() if match else name
    kind = {"": "llama", "qwen": "qwen2"}.get(kind, kind)
    text = {"model_type": kind, **{key: config[key] for key in TEXT_KEYS if key in config}}
    return check_text(file, text, name)


def check_text(file: Path, text: Node, name: str = "") -> Node:
    """Return a text config that the decoder computes as Hugging Face does.

    A sliding window that is at least as long as any input is removed.

    Args:
        file: File of the config, for messages.
        text: The text config, with its `model_type`.
        name: Name of the model in the file, for messages; default: the model type.

    Raises:
        FileError: If it is of another model type, invalid, or has a shorter sliding window.
    """
    kind = text["model_type"]
    sizes = {key: value for key, value in text.items() if key != "model_type"}
    if kind not in TEXT_MODELS:
        raise FileError(
            f"{file} names the text model {name or kind}, which is not supported; supported are"
            f" {', '.join(TEXT_MODELS)}."
        )
    try:
        full: Any = AutoConfig.for_model(kind, **sizes)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{file} has an invalid text config: {reason}") from error
    window = getattr(full, "sliding_window", None)
    kinds = getattr(full, "layer_types", None) or ["sliding_attention"]
    if window is None or "sliding_attention" not in kinds:
        return text
    if window < full.max_position_embeddings:
        raise FileError(
            f"{file} has sliding_window={window}, shorter than"
            f" max_position_embeddings={full.max_position_embeddings}; sliding windows are not"
            " supported. If no input will be longer than the window, set max_position_embeddings"
            f" to {window} in that file."
        )
    unused = ("layer_types", "use_sliding_window")
    return {k: v for k, v in text.items() if k not in unused} | {"sliding_window": None}
