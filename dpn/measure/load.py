"""Settings of `dpn.bench`: what it measures and how."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dpn.common.ranges import AtLeast0, AtLeast1, Device, Form, Range, Seed
from dpn.decoder.backends import BackendName

_SOME = Form(r"\[.+\]", "a list with at least one number")
Sizes = AtLeast1 | Annotated[list[AtLeast1], _SOME]
_FromThree = Annotated[int, Range(3)]


@dataclass
class Load:
    """What `dpn.bench` measures, and how. For lists, every combination is measured.

    Attributes:
        batch_size: Number of samples, each with one image.
        text_columns: Number of text columns of a sample.
        new_tokens: Number of new tokens of an answer.
        route: Action of the router: it chooses itself (`own`), leaves the most or the fewest rows
            that it can, or pools with given kernels at its layers, see `Router.with_route`.
        pairs: Number of measured rounds; 0: only costs, computed from the configuration.
        train: Whether to time a training step.
        profile: Whether to measure the time of each part of the model.
        attention: Attention backend.
        checkpoint_layers: Whether a training step uses activation checkpointing.
        compile_layers: Whether to compile the layers; those of Hugging Face's model are not.
        device: Device; `auto` is the GPU if there is one.
        dtype: Dtype of the weights.
        seed: Seed of weights, images and text.
    """

    batch_size: Sizes = 8
    text_columns: _FromThree | Annotated[list[_FromThree], _SOME] = 64
    new_tokens: Sizes = 16
    route: Literal["own", "most", "fewest"] | list = "own"
    pairs: AtLeast0 = 20
    train: bool = True
    profile: bool = False
    attention: BackendName = "auto"
    checkpoint_layers: bool = False
    compile_layers: bool = False
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: Seed = 0
