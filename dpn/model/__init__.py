"""The Hugging Face classes: configuration, model, processor and generation.

Imports what a model is made of: `common`, `tokens`, `cost`, `vision`, `projectors`, `routers` and
`decoder`, and for the processor `data`.
"""

from dpn.model.configuration import DPNConfig
from dpn.model.modeling import DPNForConditionalGeneration, meta_model
from dpn.model.processing import DPNProcessor

__all__ = ["DPNConfig", "DPNForConditionalGeneration", "DPNProcessor", "meta_model"]
