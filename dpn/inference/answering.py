"""Load a trained model and generate answers; used by train, eval, generate, chat and route."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, StopStringCriteria
from transformers.utils.logging import disable_progress_bar

from dpn import checkpoints
from dpn.common import hub
from dpn.common.checksums import check_checksums
from dpn.common.files import atomic_folder, why_unwritten
from dpn.common.ranges import AtLeast1, NonNegative, Share
from dpn.cost import prefill_flops, visual_macs_ratio
from dpn.data.batch import IGNORE, Batch, collate
from dpn.data.conversation import IMAGE
from dpn.data.image_files import read_image
from dpn.data.rows import Questions
from dpn.inference.methods import Method, check_methods, replace_methods
from dpn.metrics.speed import now
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.tokens import Trace

if TYPE_CHECKING:
    from dpn.data.module import DataModule

disable_progress_bar()  # for reading and writing weights
Answer = dict[str, Any]


@dataclass
class Decoding:
    """Options of decoding; greedy by default."""

    num_beams: AtLeast1 = 1
    temperature: NonNegative = 0.0
    top_p: Share = 1.0
    stop: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `answer`."""
        options: dict[str, Any] = {"num_beams": self.num_beams, "stop": list(self.stop)}
        if self.temperature:
            options |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return options


def load(
    folder: Path,
    device: str = "auto",
    router: Method | None = None,
    projector: Method | None = None,
    keep: float | None = None,
) -> tuple[DPNForConditionalGeneration, DPNProcessor]:
    """Load model (in eval mode) and processor.

    Args:
        folder: Run folder, or a Hugging Face folder or Hub id of a model that
            `dpn.checkpoints.folders` knows, such as LLaVA-1.5.
        device: `auto`, `cpu` or `cuda`.
        router: Router that replaces the folder's, see `dpn.inference.methods.replace_methods`.
        projector: Projector that replaces the folder's.
        keep: Share of visual work.

    Raises:
        FileNotFoundError: If the folder holds no model.
        FileError: If its weights are not those that were saved.
        FolderError: If its model is of an unknown kind, or incomplete.
        OSError: If the device is not available.
        SettingError: If a method needs training or data, or does not fit the model.
    """
    place = model_folder(folder)
    if not checkpoints.holds_model(place):
        raise FileNotFoundError(
            f"run={folder} holds no model: expected {place / 'config.json'}; give the folder of a"
            " finished run or a Hugging Face model folder."
        )
    device = device_of(device)
    check_checksums(place)
    if replaced := (router, projector, keep) != (None, None, None):
        check_methods(place, folder, router, projector, keep)
    model, processor = checkpoints.load_model(place)
    if replaced:
        replace_methods(model, folder, router, projector, keep)
    return model.to(device).eval(), processor


def device_of(name: str) -> str:
    """Return the device that a name stands for; `auto` is the GPU if there is one.

    Raises:
        OSError: If the device is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and int(name[5:] or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise OSError(f"device={name}, but torch finds {count} GPUs; give another device.")
    return name


def model_folder(name: Path | str, weights: bool = True) -> Path:
    """Return the local Hugging Face folder that a name stands for.

    Args:
        name: Run folder, Hugging Face folder or Hub id; a name that exists nowhere is returned.
        weights: Whether the weights of a Hub id are needed, or only its small files.
    """
    folder = Path(name)
    if not folder.exists() and hub.is_id(str(name)):
        folder = hub.find(str(name), weights)
    return folder / "model" if (folder / "model").is_dir() else folder


def save(model: DPNForConditionalGeneration, processor: DPNProcessor, folder: Path) -> None:
    """Write a Hugging Face folder; an existing one is replaced once the new one is complete.

    Raises:
        OSError: If it cannot be written, e.g. since the disk is full.
    """
    try:
        with atomic_folder(folder) as fresh:
            model.save_pretrained(fresh)
            processor.save_pretrained(fresh)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The model could not be written to {folder} ({why_unwritten(error)}). Make room and"
            " run the same command again; it continues from the last checkpoint."
        ) from error


@torch.inference_mode()
def answer(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    **options: Any,
) -> list[Answer]:
    """Answer left-padded prompts.

    Args:
        model: Model in eval mode.
        processor: Processor of the model.
        inputs: Tensors for `forward`, without labels.
        max_new_tokens: Maximum number of tokens in an answer.
        stop: Strings that end an answer; they are removed from it.
        options: Options for Hugging Face's `generate`; greedy by default.

    Returns:
        One dictionary per prompt with answer, route (choice at each layer with a choice), rows
        (visual rows that enter each layer), base_rows (the tower's uncompressed tokens),
        visual_macs_ratio, prefill_flops, new_tokens, ms and prefill_ms. The times are the batch's
        time, in total and until the first token, divided by the number of prompts.
    """
    made = generate(model, processor, inputs, max_new_tokens, stop, **options)
    mask, marks = inputs["attention_mask"], inputs["input_ids"] == processor.image_token_id
    columns = (mask.sum(1) - marks.sum(1)).repeat_interleave(made.beams).tolist()
    flops = prefill_flops(model, made.trace, columns)
    return describe(model, processor, made, flops[:: made.beams], stop)


@dataclass(frozen=True)
class Generated:
    """Generated ids with trace and times.

    Attributes:
        ids: `[B, T]`, prompts and answers.
        new: `[B, T']`, answers only.
        trace: Trace of the prefill, with each prompt repeated `beams` times.
        beams: Number of beams.
        ms: Time for the whole batch.
        prefill_ms: Time until the first tokens.
    """

    ids: Tensor
    new: Tensor
    trace: Trace
    beams: int
    ms: float
    prefill_ms: float


@torch.inference_mode()
def generate(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    **options: Any,
) -> Generated:
    """Generate answers with Hugging Face's `generate`; see `answer` for the arguments."""
    watch = _Stopwatch()
    criteria = StoppingCriteriaList([watch])
    if stop:
        criteria.append(StopStringCriteria(processor.tokenizer, list(stop)))
    out = model.generate(
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        max_new_tokens=max_new_tokens,
        pad_token_id=processor.pad_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        return_dict_in_generate=True,
        stopping_criteria=criteria,
        **{"do_sample": False, "use_cache": True, **options},  # the cache holds the trace
    )
    took = now() - watch.start
    trace = out.past_key_values.trace
    return Generated(
        out.sequences,
        out.sequences[:, inputs["input_ids"].shape[1] :],
        trace,
        len(trace.base_rows) // len(out.sequences),
        1e3 * took,
        1e3 * watch.first,
    )


def describe(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    made: Generated,
    flops: Sequence[int],
    stop: Sequence[str] = (),
) -> list[Answer]:
    """Return answers in the form of `answer`, given the prefill FLOPs of each."""
    trace = made.trace
    ratios = visual_macs_ratio(trace, model.config.text_config)
    texts = [_before(text, stop) for text in processor.batch_decode(made.new)]
    lengths = _lengths(made.new, processor.pad_token_id)
    return [
        {
            "answer": text,
            "route": {str(layer): name for layer, name in trace.route_of(b).items()},
            "rows": [rows[b] for rows in trace.visual_rows],
            "base_rows": trace.base_rows[b],
            "visual_macs_ratio": ratios[b],
            "prefill_flops": spent,
            "new_tokens": tokens,
            "ms": made.ms / len(texts),
            "prefill_ms": made.prefill_ms / len(texts),
        }
        for b, text, tokens, spent in zip(
            range(0, len(trace.base_rows), made.beams), texts, lengths, flops, strict=True
        )
    ]


class _Stopwatch(StoppingCriteria):
    """Stopping criterion that never stops, but measures the time until the first token.

    Attributes:
        start: Creation time in seconds.
        first: Seconds from `start` until all prompts had their first token.
    """

    def __init__(self) -> None:
        self.start, self.first = now(), 0.0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.first = self.first or now() - self.start
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _before(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    return text[: min((text.find(s) for s in stop if s in text), default=None)].strip()


def _lengths(ids: Tensor, pad: int) -> list[int]:
    """Count the ids of each row of `[B, T]` without the padding at its end; at least 1."""
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return ((ids != pad) * places).amax(1).clamp(min=1).tolist()


def prompts(batch: Batch) -> dict[str, Tensor]:
    """Return inputs for `generate`; as in training, the instruction ends at the first answer."""
    inputs = batch.model_inputs()
    supervised = inputs.pop("labels") != IGNORE
    first = supervised.int().argmax(1)
    inputs["instruction_end"] = torch.where(supervised.any(1), first, supervised.shape[1])
    return inputs


def training_prompts(
    source: "DataModule", device: torch.device, count: int = 256
) -> list[dict[str, Tensor]]:
    """Draw questions from the training data, prepared as in an evaluation, for calibration."""
    settings, processor = source.source, source.processor
    split = settings.split("train")
    assert split is not None
    questions = Questions(split, processor, settings.max_length, settings.on_error)
    order = np.random.default_rng(settings.seed).permutation(len(questions))[:count]
    samples = [questions[index] for index in order.tolist()]
    size = settings.eval_batch_size
    chunks = [samples[start : start + size] for start in range(0, len(samples), size)]
    batches = [collate(chunk, processor.pad_token_id, "left") for chunk in chunks]
    return [{k: v.to(device) for k, v in prompts(batch).items()} for batch in batches]


def ask(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    prompt: str,
    images: list[Image.Image],
    max_new_tokens: int,
    **options: Any,
) -> Answer:
    """Answer one question about some images; missing `<image>` marks are added to the prompt."""
    inputs = inputs_of(processor, prompt, images)
    return answer(model, processor, inputs, max_new_tokens, **options)[0]


def inputs_of(
    processor: DPNProcessor, prompt: str, images: Sequence[Image.Image]
) -> dict[str, Tensor]:
    """Return inputs for `answer` for one question about some images."""
    messages, pictures = [question(prompt, images)], list(images) or None
    return dict(processor(messages=messages, images=pictures))


def question(prompt: str, images: Sequence[Image.Image]) -> dict[str, str]:
    """Return a message about some images; missing `<image>` marks are added to the prompt."""
    missing = len(images) - prompt.count(IMAGE)
    return {"role": "user", "content": f"{IMAGE}\n" * max(0, missing) + prompt}


def read_images(names: str | None) -> list[Image.Image]:
    """Read images from comma-separated file names; the name of a file may itself have commas.

    Raises:
        FileNotFoundError: If a file does not exist.
        DataError: If a file is broken.
    """
    return [read_image(file) for file in _files(names.split(","))] if names else []


def _files(parts: Sequence[str]) -> list[Path]:
    """Return files whose names are comma-separated; the longest name that exists is taken."""
    found: list[Path] = []
    while parts:
        names = [",".join(parts[:count]) for count in range(len(parts), 0, -1)]
        name = next((name for name in names if Path(name).is_file()), None)
        if name is None:
            raise FileNotFoundError(f"image={parts[0]} does not exist; check the path.")
        found.append(Path(name))
        parts = parts[name.count(",") + 1 :]
    return found


def route_of(found: Answer) -> str:
    """Describe the route of an answer: the choice at each layer."""
    return ", ".join(f"layer {layer}: {expert}" for layer, expert in found["route"].items())
