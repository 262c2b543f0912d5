"""Run tasks of lmms-eval on a trained model.

    python -m lmms_eval --model dpn --model_args run=FOLDER --tasks pope --batch_size 16

Prompts and scores are those of lmms-eval; use `dpn.eval` for those of LLaVA.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from PIL import Image
from transformers import GenerationConfig

from dpn import inference
from dpn.common.errors import SettingError
from dpn.common.progress import progress
from dpn.data.batch import IGNORE, DataError, Sample, collate
from dpn.data.conversation import IMAGE, Piece, Turn, check_words
from dpn.data.image_files import to_rgb
from dpn.data.image_rules import OFFICIAL
from dpn.inference import Decoding
from dpn.inference.questions import AnswerError, batches_by_length

log = logging.getLogger(__name__)
#: Keys that are supported in the `generation_kwargs` of a task.
TAKEN = frozenset(vars(GenerationConfig())) | {"until", "max_gen_toks"}


class DPN(lmms):
    """Model of lmms-eval for tasks with text and any number of images.

    Every process of `accelerate launch` holds the whole model and answers the documents that
    lmms-eval assigns to it.

    Args:
        run: Run folder or Hugging Face model folder.
        batch_size: Batch size per process.
        device: `auto`, `cpu` or `cuda`; ignored with several processes, each of which has its own.
        max_new_tokens: Maximum number of tokens in an answer, if the task sets none.
    """

    def __init__(
        self,
        run: str,
        batch_size: int | str = 1,
        device: str = "auto",
        max_new_tokens: int = 1024,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise SettingError(
                f"batch_size={batch_size} is not a number of requests; give 1 or more."
            )
        self.batch_size, self.max_new_tokens = int(batch_size), max_new_tokens
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if self._world_size > 1:
            device = str(self.accelerator.device)
        self.model, self.processor = inference.load(Path(str(run)), device)
        self.device = self.model.device  # lmms-eval reads it after deleting the model

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer requests, and log the cost for lmms-eval's results.

        The cost appears there under `throughput`; `avg_visual_macs_ratio` is the mean over the
        answers of the first process.

        Raises:
            AnswerError: If a request cannot be asked or the model fails; names task and document.
        """
        if unknown := sorted({name for request in requests for name in request.args[1]} - TAKEN):
            log.warning("This model ignores generation_kwargs %s.", ", ".join(unknown))
        rows = self._in_batches(requests, self._answer, lambda r: json.dumps(r.args[1]))
        if rows:
            _log_cost(rows)
        return [row["answer"] for row in rows]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Compute how probable given answers are, and whether greedy decoding starts with them.

        A continuation is treated as an answer of the assistant: it follows the prompt as in the
        template, regardless of leading or trailing spaces, and both are tokenised together. The
        log-probabilities of the tokens that start inside it are summed, without the end token.

        Returns:
            A pair (number, is greedy) for each request, as `text` of a result, since lmms-eval
            turns a bare pair into a string (its `--use_cache` stores neither). The number is the
            log-probability if the request is for the task's target, and its negative for an option
            of a multiple-choice question, since lmms-eval picks the smallest number.

        Raises:
            AnswerError: If a request cannot be asked or the model fails; names task and document.
        """
        pairs = self._in_batches(requests, self._score)
        return [
            GenerationResult((-total if isinstance(request.args[1], str) else total, greedy))
            for request, (total, greedy) in zip(requests, pairs, strict=True)
        ]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raise an error: dialogues of several rounds are not supported."""
        raise NotImplementedError(
            "The dpn model answers one round; choose tasks without generate_until_multi_round."
        )

    def _in_batches(
        self,
        requests: Sequence[Instance],
        ask: Callable[[Sequence[Instance], Sequence[Sample]], Sequence[Any]],
        kind: Callable[[Instance], Any] = lambda request: None,
    ) -> list[Any]:
        """Call `ask` on all requests, in batches of one kind and similar length."""
        kinds: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            kinds.setdefault(kind(request), []).append(place)
        lengths = [len(request.args[0]) for request in requests]
        batches = [
            batch
            for places in kinds.values()
            for batch in batches_by_length(places, lengths, self.batch_size)
        ]
        shown = progress(batches, "asking", len(requests), len, "requests")
        found: dict[int, Any] = {}
        for places in shown if self.rank == 0 else batches:
            asked = [requests[place] for place in places]
            samples = [self._sample(request) for request in asked]
            with _naming(asked):
                found |= zip(places, ask(asked, samples), strict=True)
        return [found[place] for place in range(len(requests))]

    def _sample(self, request: Instance) -> Sample:
        """Encode the prompt with its images; the continuation, if any, becomes the labels."""
        context, wanted, doc_to_visual, doc_id, task, split = request.args
        with _naming([request]):
            document = self.task_dict[task][split][doc_id]
            images = _images(doc_to_visual(document))
            if images:  # images come first, as in the template
                context = IMAGE * len(images) + context.replace(IMAGE, "")
            elif IMAGE in context:
                raise DataError(f"the context holds an {IMAGE} mark, but there are no images.")
            pieces = [Piece(self.processor.prompt([{"role": "user", "content": context}]))]
            if not isinstance(wanted, Mapping):
                text = wanted(document) if callable(wanted) else wanted
                pieces.append(self._continuation(text))
            ids, labels = self.processor.tokenize(pieces)
            pixels = [self.processor.transform(to_rgb(image, OFFICIAL)) for image in images]
            return Sample(ids, labels, pixels, sample_id=int(doc_id))

    def _continuation(self, text: Any) -> Piece:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"the continuation is {text!r}; it must hold a word.")
        check_words([Turn("assistant", text)], self.processor.tokenizer.eos_token)
        return Piece(self.processor.style.answer + text.strip(), supervised=True)

    def _answer(
        self, requests: Sequence[Instance], samples: Sequence[Sample]
    ) -> list[inference.Answer]:
        """Answer requests with the same settings."""
        most, options = decoding(requests[0].args[1], self.max_new_tokens)
        inputs = inference.prompts(collate(samples, self.processor.pad_token_id, "left"))
        return inference.answer(self.model, self.processor, inputs, most, **options)

    @torch.inference_mode()
    def _score(self, _: Sequence[Instance], samples: Sequence[Sample]) -> list[tuple[float, bool]]:
        """Return the log-probability of each sample's labels and whether all are most probable."""
        batch = collate(samples, self.processor.pad_token_id, "left").to(self.model.device)
        counts = (batch.labels != IGNORE).sum(1).tolist()
        # [B, K, V]: logits of the scored ids and of the ids before them
        logits = self.model(**inference.prompts(batch), logits_to_keep=max(counts) + 1).logits
        pairs = []
        for row, ids, count in zip(logits.float(), batch.input_ids, counts, strict=True):
            row, ids = row[-count - 1 : -1], ids[-count:]
            total = row.log_softmax(-1).gather(1, ids[:, None]).sum()
            row[:, self.processor.image_token_id] = -torch.inf  # answers never contain this id
            pairs.append((float(total), bool((row.argmax(-1) == ids).all())))
        return pairs


def decoding(asked: Mapping[str, Any], max_new_tokens: int) -> tuple[int, dict[str, Any]]:
    """Convert a task's `generation_kwargs` to arguments of `dpn.inference.answer`.

    Args:
        asked: Settings of the task. `until` has strings that end an answer; answers are sampled if
            `temperature` is above 0, unless `do_sample` is false; other options of Hugging Face's
            `generate` are passed on.
        max_new_tokens: Limit to use if the task has none.

    Returns:
        Maximum number of new tokens, and the other options.
    """
    given = {name: value for name, value in asked.items() if name in TAKEN and value is not None}
    until = given.pop("until", [])
    sampled = given.pop("do_sample", None)
    temperature = given.pop("temperature", 1.0 if sampled else 0.0)
    chosen = Decoding(
        num_beams=given.pop("num_beams", 1),
        temperature=0.0 if sampled is False else temperature,
        top_p=given.pop("top_p", 1.0),
        stop=[text for text in ([until] if isinstance(until, str) else until) if text],
    )
    limit = given.pop("max_gen_toks", max_new_tokens)
    return given.pop("max_new_tokens", limit), chosen.options | given


def _images(visuals: Any) -> list[Image.Image]:
    images = list(visuals or [])
    for image in images:
        if not isinstance(image, Image.Image):
            raise DataError(
                f"its {type(image).__name__} is not an image; only images are supported."
            )
    return images


@contextmanager
def _naming(requests: Sequence[Instance]) -> Iterator[None]:
    """Add the names of the documents to errors of the block."""
    try:
        yield
    except Exception as error:
        documents = dict.fromkeys(f"{r.args[4]}, document {r.args[3]}" for r in requests)
        raise AnswerError(f"No answer at {'; '.join(documents)}: {error}") from error


def _log_cost(rows: Sequence[inference.Answer]) -> None:
    seconds = sum(row["ms"] for row in rows) / 1e3
    tokens = sum(row["new_tokens"] for row in rows)
    shares = [row["visual_macs_ratio"] for row in rows if row["base_rows"]]
    further = {"visual_macs_ratio": sum(shares) / len(shares)} if shares else {}
    log_metrics(seconds, tokens, tokens / seconds, {"total_requests": len(rows), **further})
