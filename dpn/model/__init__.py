"""The Hugging Face classes: configuration, model, processor and generation.

Imports `common`, `tokens`, `cost`, `vision`, `data`, `projectors`, `routers` and `decoder`.
"""

from typing import TYPE_CHECKING

from dpn.model.configuration import DPNConfig
from dpn.model.modeling import DPNForConditionalGeneration, meta_model

if TYPE_CHECKING:
    from dpn.model.processing import DPNProcessor

__all__ = ["DPNConfig", "DPNForConditionalGeneration", "DPNProcessor", "meta_model"]


def __getattr__(name: str):
    """The processor, imported when it is used: it needs Pillow, which the model does not."""
    if name != "DPNProcessor":
        raise AttributeError(f"module 'dpn.model' has no attribute {name!r}.")
    from dpn.model.processing import DPNProcessor

    return DPNProcessor
