"""Load and convert weights of LLaVA, LLaVA-HR, DPN and Hugging Face, whole or in parts.

Imports `common`, `metrics`, `data` and `model`.
"""

from dpn.checkpoints.conversion import convert
from dpn.checkpoints.folders import (
    FolderError,
    check_processor,
    check_weights,
    holds_model,
    is_own,
    load_model,
    model_settings,
    text_arguments,
)
from dpn.checkpoints.loading import Report, load
from dpn.checkpoints.tokenizers import read_tokenizer, tokenization_of

__all__ = [
    "FolderError",
    "Report",
    "check_processor",
    "check_weights",
    "convert",
    "holds_model",
    "is_own",
    "load",
    "load_model",
    "model_settings",
    "read_tokenizer",
    "text_arguments",
    "tokenization_of",
]
