"""Sizes of most tests' models: a tower of 4-pixel patches, a decoder of 4 layers."""

from transformers import LlamaConfig

VISION = {"name": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}


def text_config(vocab_size, **further):
    """Of a decoder whose weights are large enough for differences to show."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.15,
    }
    return LlamaConfig(vocab_size=vocab_size, **sizes | further)
