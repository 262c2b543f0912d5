"""DPN: multimodal LLMs whose visual tokens shrink inside the decoder, per sample.

Letters in shapes, here and in every docstring:
    B samples, T text columns of `input_ids`, I images, V visual tokens of a sample, N packed rows,
    D width, H heads, L layers, E experts.

A *column* is a place in `input_ids`; a *row* is a vector in the packed batch. An `<image>` column
stands for all visual rows of its image.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dpn.common import auto_classes

__version__ = "0.1.0"

__all__ = ["DPNConfig", "DPNForConditionalGeneration", "DPNProcessor", "__version__"]

if TYPE_CHECKING:
    from dpn.model import DPNConfig, DPNForConditionalGeneration, DPNProcessor


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(
            f"module 'dpn' has no attribute {name!r}; it has {', '.join(__all__)}."
        )
    return getattr(import_module("dpn.model"), name)  # torch and transformers are imported here


auto_classes.announce()
