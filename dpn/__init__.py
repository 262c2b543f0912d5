"""DPN: multimodal LLMs that reduce the visual tokens of each sample inside the decoder.

Letters in shapes, here and in every docstring:
    B samples, T text columns of `input_ids`, I images, V visual tokens of a sample, N packed rows,
    D width, H heads, L layers, E experts.

Words, with one meaning in every docstring:
    A *column* is a place in `input_ids`; an `<image>` column stands for all rows of its image.
    A *row* is a vector of the packed batch, which holds text and visual rows without padding.
    A *token* is an entry of the vocabulary; a *visual token* is a vector that the vision tower or
    the projector computes from an image and that enters the decoder as a row.
    A *grid* is the height and width of an image's visual tokens or rows, in raster order.
    A *span* is a run of consecutive rows of one image: all of them, or those of a tile or frame.
    A *decision* is what a router chooses at one layer.
    A *route* is the list of one sample's decisions over all layers.
    A *trace* is the record of one forward pass: the rows of every layer and all decisions.
    A *plan* says what one layer computes for visual rows (`dpn.tokens.LayerPlan`).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dpn.common import auto_classes, early_stop

__version__ = "0.1.0"

#: Where each public name is; torch and transformers are imported with the first of them.
_PLACES = {
    **dict.fromkeys(("DPNConfig", "DPNForConditionalGeneration", "DPNProcessor"), "dpn.model"),
    **dict.fromkeys(("compress", "restore"), "dpn.compressed"),
}
__all__ = [
    "DPNConfig",
    "DPNForConditionalGeneration",
    "DPNProcessor",
    "__version__",
    "compress",
    "restore",
]

if TYPE_CHECKING:
    from dpn.compressed import compress, restore
    from dpn.model import DPNConfig, DPNForConditionalGeneration, DPNProcessor


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(
            f"module 'dpn' has no attribute {name!r}; it has {', '.join(__all__)}."
        )
    return getattr(import_module(_PLACES[name]), name)


early_stop.install()
auto_classes.announce()
