"""Sections of the configs that are read in several places.

The schema of every other section is the constructor that it is passed to.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from dpn.decoder.attention import BackendName
from dpn.measure.load import Load
from dpn.training.stage import Part


@dataclass
class Paths:
    """Section `paths`."""

    output_root: str
    data_root: str
    weights_root: str
    run_dir: str | None = None


@dataclass
class Init:
    """Section `init`: folders, files or Hugging Face Hub ids whose weights training starts from.

    Attributes:
        language: of the text model and its head.
        vision: of the vision tower; of the fast one where there are two.
        slow_vision: of the second vision tower.
        projector: file, or a run's folder.
        model: of all parts, or a run's folder; the others, where given, replace theirs.
    """

    language: str | None = None
    vision: str | None = None
    slow_vision: str | None = None
    projector: str | None = None
    model: str | None = None


@dataclass
class Generation:
    """Section `model.generation`."""

    max_new_tokens: int = 32


@dataclass
class Weights:
    """Section `model.weights`: where `init=pretrained` finds the parts, see `Init`.

    Attributes:
        language: of the text model, and its tokenizer.
        vision: of the vision tower.
        slow_vision: of the second vision tower.
        projector: after the first stage.
        llava: a finished model, for `stage=gates`.
    """

    language: str | None = None
    vision: str | None = None
    slow_vision: str | None = None
    projector: str | None = None
    llava: str | None = None


@dataclass
class Model:
    """Section `model`.

    Attributes:
        text: a Hugging Face text config.
        vision: name and arguments of the vision tower.
        processor: arguments of `DPNProcessor`.
        generation: see `Generation`.
        tokenizer: folder or Hub name of a tokenizer; None trains one on the data's text.
        vocab_size: upper limit for the trained one.
        min_rows: fewest visual rows a router may leave a sample, where the router does not say.
        gate_temperature: divides the logits of a router's gates, where the router does not say.
        weights: see `Weights`.
        checkpoint_layers: whether layers are computed again in the backward pass, to save memory.
        compile_layers: whether `torch.compile` makes faster code of layers, in the first steps.
        attention: backend, see `dpn.decoder.attention`.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    processor: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: str | None = None
    vocab_size: int = 1024
    min_rows: int = 18
    gate_temperature: float = 10.0
    weights: dict[str, Any] = field(default_factory=dict)
    checkpoint_layers: bool = False
    compile_layers: bool = False
    attention: BackendName = "auto"


@dataclass
class Recipe:
    """Section `recipe`: values that belong to a model and that other groups take.

    Attributes:
        keep: Share of visual MACs that `router=dpe` is trained for; None: the paper's hinge.
        freeze: Parts that `stage=finetune` does not train.
        pretrain_image_size: Pixels of an image's side in `stage=pretrain`.
        batch_size: Samples per process, on the instruction data.
        group: How `data=llava_665k` groups samples into batches, see `dpn.data.grouping`.
        max_length: Most ids of a sample of the instruction data.
    """

    keep: float | None = None
    freeze: list[Part] = field(default_factory=list)
    pretrain_image_size: int = 336
    batch_size: int = 16
    group: Literal["none", "llava", "llava_hr", "dpn"] = "none"
    max_length: int = 2048


@dataclass
class Train:
    """The sections and values of train.yaml."""

    model: dict[str, Any]
    recipe: dict[str, Any]
    projector: dict[str, Any]
    router: dict[str, Any]
    loss: dict[str, Any]
    data: dict[str, Any]
    stage: dict[str, Any]
    init: dict[str, Any]
    optim: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any]
    callbacks: dict[str, Any]
    paths: dict[str, Any]
    seed: int = 0
    overlays: int = 4


@dataclass
class Machine:
    """Section `plan` of plan.yaml: the GPUs, and what is assumed about speed and data.

    Attributes:
        memory_gib: of one GPU.
        peak_tflops: of one GPU, dense, in the precision of the run.
        utilisation: share of the peak that training reaches; an assumption.
        text_rows: mean text tokens of a sample; None: what `dpn.plan` assumes of the file.
        samples: of one epoch; None: the rows of the data's file.
    """

    memory_gib: float = 80.0
    peak_tflops: float = 989.0
    utilisation: float = 0.4
    text_rows: int | None = None
    samples: int | None = None


@dataclass
class Evaluation:
    """The sections and values of eval.yaml."""

    run: str
    benchmarks: list[str]
    paths: dict[str, Any]
    data_root: str
    settings: dict[str, Any]
    generation: dict[str, Any]
    limit: int | None = None
    batch_size: int = 16
    num_workers: int = 0
    data: dict[str, Any] | None = None
    max_new_tokens: int | None = None
    against: str | None = None
    overlays: int = 12
    device: str = "auto"
    seed: int = 0


@dataclass(kw_only=True)
class Bench(Load):
    """The sections and values of bench.yaml.

    Attributes:
        folder: of the results of all benchmarks.
    """

    model: dict[str, Any]
    projector: dict[str, Any]
    router: dict[str, Any]
    paths: dict[str, Any]
    folder: str = "outputs/bench"
