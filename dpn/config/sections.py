"""Schemas of config sections that are read in several places, and of whole config files.

Every other section is passed to one constructor, whose annotated signature is its schema. See
`dpn.config.checks` for the section that each schema belongs to.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dpn.common.ranges import AtLeast0, AtLeast1, Device, Keep, Pixels, Positive, Range, Seed
from dpn.decoder.backends import BackendName
from dpn.measure.load import Load
from dpn.training.stage import Part

#: Seconds, at most a week.
Timeout = Annotated[int, Range(1, 7 * 24 * 3600)]


@dataclass
class Paths:
    """Section `paths`.

    Attributes:
        output_root: Folder of all results.
        data_root: Folder of the data sets.
        weights_root: Folder of pretrained weights.
        run_dir: Folder of this run; None derives it from the overrides and the config.
    """

    output_root: str
    data_root: str
    weights_root: str
    run_dir: str | None = None


@dataclass
class Init:
    """Section `init`: the weights that training starts from.

    Each value is a folder, a file or a Hugging Face Hub id; None keeps random weights.

    Attributes:
        language: Weights of the text model and its head.
        vision: Weights of the vision tower; if it has a fast and a slow tower, of the fast one.
        slow_vision: Weights of the slow vision tower.
        projector: Weights of the projector; a run folder is possible, too.
        model: Weights and sizes of all parts, from a run folder or a LLaVA-1.5 of Hugging Face, see
            `dpn.config.adopt`. The other values, where given, replace its parts.
    """

    language: str | None = None
    vision: str | None = None
    slow_vision: str | None = None
    projector: str | None = None
    model: str | None = None


@dataclass
class Generation:
    """Section `model.generation`: how held-out questions are answered after training.

    Attributes:
        max_new_tokens: Maximum number of new tokens of an answer.
    """

    max_new_tokens: AtLeast1 = 32


@dataclass
class Weights:
    """Section `model.weights`: published weights of the model, which `init=pretrained` uses.

    Each value is a folder, a file or a Hugging Face Hub id.

    Attributes:
        language: Text model with its tokenizer.
        vision: Vision tower; if there is a fast and a slow one, the fast one.
        slow_vision: Slow vision tower.
        projector: Projector as it is after `stage=pretrain`.
        llava: Model after `stage=finetune`, for `stage=gates`.
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
        text: Config of a Hugging Face text model.
        vision: Name and arguments of the vision tower.
        processor: Arguments of `DPNProcessor`.
        generation: See `Generation`.
        tokenizer: Folder or Hub id of a tokenizer; None trains one on the text of the data set.
        vocab_size: Maximum vocabulary size of a tokenizer that is trained.
        min_rows: Default of `router.min_rows`, the fewest visual rows a router may leave a sample.
        gate_temperature: Default of `router.temperature`, which divides the logits of gates.
        weights: See `Weights`.
        checkpoint_layers: Whether to recompute layers in the backward pass, which saves memory.
        compile_layers: Whether to compile layers with `torch.compile`, during the first steps.
        attention: Attention backend, see `dpn.decoder.attention`.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    processor: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: str | None = None
    vocab_size: Annotated[int, Range(8, 2**24)] = 1024
    min_rows: AtLeast0 | Literal["reference"] = 18
    gate_temperature: Positive = 10.0
    weights: dict[str, Any] = field(default_factory=dict)
    checkpoint_layers: bool = False
    compile_layers: bool = False
    attention: BackendName = "auto"


@dataclass
class Recipe:
    """Section `recipe`: values that depend on the model and that other sections refer to.

    Attributes:
        keep: Share of visual MACs that `router=dpe` is trained for; None trains with the paper's
            hinge loss instead.
        freeze: Parts that `stage=finetune` does not train.
        pretrain_image_size: Height and width of images in `stage=pretrain`, in pixels.
        batch_size: Samples per process with `data=llava_665k`.
        group: How `data=llava_665k` groups samples into batches, see `dpn.data.grouping`.
        max_length: Maximum number of ids of a sample of `data=llava_665k`.
        train_images: Mosaics to train on, with `data=mosaic`; `debug=fast` sets it.
        val_images: Mosaics to validate on, with `data=mosaic`; `debug=fast` sets it.
        val_rows: Rows to validate on, with `data=llava_json`; `debug=fast` sets it.
    """

    keep: Keep | None = None
    freeze: list[Part] = field(default_factory=list)
    pretrain_image_size: Pixels = 336
    batch_size: AtLeast1 = 16
    group: Literal["none", "llava", "llava_hr", "dpn"] = "none"
    max_length: Annotated[int, Range(2)] = 2048
    train_images: AtLeast1 = 10_000
    val_images: AtLeast1 = 100
    val_rows: AtLeast1 | None = None


@dataclass
class Train:
    """Sections and top-level values of train.yaml.

    Attributes:
        timeout_s: Seconds that processes wait for each other before the run fails.
    """

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
    seed: Seed = 0
    overlays: AtLeast0 = 4
    timeout_s: Timeout = 1800


@dataclass
class Machine:
    """Section `plan` of plan.yaml: the GPUs, and assumptions about speed and data.

    Attributes:
        memory_gib: Memory of one GPU in GiB.
        peak_tflops: Peak of one GPU in TFLOP/s, dense, in the precision of the run.
        utilisation: Share of the peak that training is assumed to reach.
        text_rows: Mean number of text tokens of a sample; None uses what `dpn.plan` assumes for
            the data file.
        samples: Samples of one epoch; None uses the number of rows of the data file.
    """

    memory_gib: Positive = 80.0
    peak_tflops: Positive = 989.0
    utilisation: Keep = 0.4
    text_rows: AtLeast1 | None = None
    samples: AtLeast1 | None = None


@dataclass
class Evaluation:
    """Sections and top-level values of eval.yaml.

    Attributes:
        timeout_s: Seconds that processes wait for each other before the evaluation fails.
    """

    run: str
    benchmarks: list[str]
    paths: dict[str, Any]
    data_root: str
    settings: dict[str, Any]
    generation: dict[str, Any]
    router: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None
    keep: Keep | None = None
    limit: AtLeast1 | None = None
    batch_size: AtLeast1 = 16
    num_workers: AtLeast0 = 0
    data: dict[str, Any] | None = None
    max_new_tokens: AtLeast1 | None = None
    against: str | None = None
    overlays: AtLeast0 = 12
    device: Device = "auto"
    seed: Seed = 0
    timeout_s: Timeout = 14400


@dataclass(kw_only=True)
class Bench(Load):
    """Sections and top-level values of bench.yaml.

    Attributes:
        folder: Folder of the results of all runs of `dpn.bench`.
    """

    model: dict[str, Any]
    projector: dict[str, Any]
    router: dict[str, Any]
    paths: dict[str, Any]
    folder: str = "outputs/bench"
