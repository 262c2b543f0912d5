"""What `dpn.bench` measures."""

from dataclasses import dataclass
from typing import Literal

from dpn.decoder.attention import BackendName


@dataclass
class Load:
    """What `dpn.bench` measures, and how. Of lists every combination is measured.

    Attributes:
        batch_size: samples.
        text_columns: of each sample, besides its one image.
        new_tokens: of each answer.
        route: what the router does: chooses itself (`own`), leaves the most or the fewest rows that
            it can, or pools with a kernel at each of its layers, see `Router.forced`.
        pairs: measured rounds; 0: costs alone, from the configuration.
        train: whether a training step is timed, too.
        profile: whether it is told where the time goes.
        attention: backend.
        checkpoint_layers: whether a training step computes layers again.
        compile_layers: whether layers are compiled; those of Hugging Face's model are not.
        device: `auto` is the GPU if there is one.
        dtype: of the weights.
        seed: of weights, images and text.
    """

    batch_size: int | list[int] = 8
    text_columns: int | list[int] = 64
    new_tokens: int | list[int] = 16
    route: Literal["own", "most", "fewest"] | list = "own"
    pairs: int = 20
    train: bool = True
    profile: bool = False
    attention: BackendName = "auto"
    checkpoint_layers: bool = False
    compile_layers: bool = False
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
