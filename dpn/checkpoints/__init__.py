"""Load and convert weights of LLaVA, LLaVA-HR, DPN and Hugging Face, whole or in parts.

Imports `common`, `metrics`, `data` and `model`.
"""

from dpn.checkpoints.conversion import convert
from dpn.checkpoints.loading import Report, load
from dpn.checkpoints.tokenizers import read_tokenizer, tokenization_of

__all__ = ["Report", "convert", "load", "read_tokenizer", "tokenization_of"]
