"""Any task of lmms-eval, asked of a trained model.

    python -m lmms_eval --model dpn --model_args run=FOLDER --tasks pope --batch_size 16

Its prompts and scores are lmms-eval's own; LLaVA's are those of `dpn.eval`.
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
from dpn.common.progress import progress
from dpn.data.batch import IGNORE, DataError, Sample, collate
from dpn.data.conversation import IMAGE, Piece, Turn, check_words
from dpn.data.encoding import tokenize
from dpn.inference import Decoding
from dpn.inference.questions import AnswerError, alike

log = logging.getLogger(__name__)
#: What a task may set in its `generation_kwargs`.
TAKEN = frozenset(vars(GenerationConfig())) | {"until", "max_gen_toks"}


class DPN(lmms):
    """A trained model; tasks are text, with any number of images.

    Every process of `accelerate launch` holds the whole model and answers the documents that
    lmms-eval gives it.

    Args:
        run: run folder or Hugging Face model folder.
        batch_size: requests at a time and process.
        device: `auto`, `cpu` or `cuda`; each of several processes takes its own.
        max_new_tokens: upper limit of an answer where the task has none.
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
            raise ValueError(f"batch_size={batch_size} is no number of requests; give 1 or more.")
        self.batch_size, self.max_new_tokens = int(batch_size), max_new_tokens
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if self._world_size > 1:
            device = str(self.accelerator.device)
        self.model, self.processor = inference.load(Path(str(run)), device)
        self.device = self.model.device  # asked for when the model is gone

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers, in the order of the requests, and their cost for lmms-eval's results.

        The cost is `throughput` there; its `avg_visual_macs_ratio` is the mean over the answers of
        the first process.

        Raises:
            AnswerError: naming task and document, if one can not be asked or the model fails.
        """
        if unknown := sorted({name for request in requests for name in request.args[1]} - TAKEN):
            log.warning("This model has no setting for generation_kwargs %s.", ", ".join(unknown))
        rows = self._in_batches(requests, self._answer, lambda r: json.dumps(r.args[1]))
        if rows:
            _log_cost(rows)
        return [row["answer"] for row in rows]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """How probable given answers are, and whether greedy decoding would begin with them.

        A continuation is what the assistant says: it follows the prompt as the template opens an
        answer, whatever blanks it comes with, and is tokenised together with it. Summed are the
        log-probabilities of the tokens that begin within it; the end token is not among them.

        Returns:
            For each request a pair in `text`, since lmms-eval turns a bare pair into a string (its
            `--use_cache` can not keep either). Its number is the log-probability where the task's
            target is asked for, and minus that for an option of a multiple choice: lmms-eval takes
            the option with the smallest number.

        Raises:
            AnswerError: naming task and document, if one can not be asked or the model fails.
        """
        pairs = self._in_batches(requests, self._score)
        return [
            GenerationResult((-total if isinstance(request.args[1], str) else total, greedy))
            for request, (total, greedy) in zip(requests, pairs, strict=True)
        ]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError(
            "The dpn model answers one round; choose tasks without generate_until_multi_round."
        )

    def _in_batches(
        self,
        requests: Sequence[Instance],
        ask: Callable[[Sequence[Instance], Sequence[Sample]], Sequence[Any]],
        kind: Callable[[Instance], Any] = lambda request: None,
    ) -> list[Any]:
        """What `ask` finds for each request, asked in batches of one kind and of like length."""
        kinds: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            kinds.setdefault(kind(request), []).append(place)
        lengths = [len(request.args[0]) for request in requests]
        batches = [b for places in kinds.values() for b in alike(places, lengths, self.batch_size)]
        shown = progress(batches, "asking", len(requests), len, "requests")
        found: dict[int, Any] = {}
        for places in shown if self.rank == 0 else batches:
            asked = [requests[place] for place in places]
            samples = [self._sample(request) for request in asked]
            with _naming(asked):
                found |= zip(places, ask(asked, samples), strict=True)
        return [found[place] for place in range(len(requests))]

    def _sample(self, request: Instance) -> Sample:
        """The prompt with its images, and the continuation, if there is one, as its labels."""
        context, wanted, doc_to_visual, doc_id, task, split = request.args
        with _naming([request]):
            document = self.task_dict[task][split][doc_id]
            images = _images(doc_to_visual(document))
            if images:  # they come first, as the template would place them
                context = IMAGE * len(images) + context.replace(IMAGE, "")
            elif IMAGE in context:
                raise DataError(f"the context holds an {IMAGE} mark, but there is no image.")
            pieces = [Piece(self.processor.prompt([{"role": "user", "content": context}]))]
            if not isinstance(wanted, Mapping):
                text = wanted(document) if callable(wanted) else wanted
                pieces.append(self._continuation(text))
            ids, labels = tokenize(pieces, self.processor.tokenizer)
            pixels = [self.processor.transform(image) for image in images]
            return Sample(ids, labels, pixels, sample_id=int(doc_id))

    def _continuation(self, text: Any) -> Piece:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"the continuation is {text!r}; it must hold a word.")
        check_words([Turn("assistant", text)], self.processor.tokenizer.eos_token)
        return Piece(self.processor.style.answer + text.strip(), supervised=True)

    def _answer(
        self, requests: Sequence[Instance], samples: Sequence[Sample]
    ) -> list[inference.Answer]:
        """Answers to requests of the same settings."""
        most, options = decoding(requests[0].args[1], self.max_new_tokens)
        inputs = inference.prompts(collate(samples, self.processor.pad_token_id, "left"))
        return inference.answer(self.model, self.processor, inputs, most, **options)

    @torch.inference_mode()
    def _score(self, _: Sequence[Instance], samples: Sequence[Sample]) -> list[tuple[float, bool]]:
        """Log-probability of each sample's labels, and whether each is the most probable id."""
        batch = collate(samples, self.processor.pad_token_id, "left").to(self.model.device)
        counts = (batch.labels != IGNORE).sum(1).tolist()
        # [B, K, V], of the ids that are scored and those before them
        logits = self.model(**inference.prompts(batch), logits_to_keep=max(counts) + 1).logits
        pairs = []
        for row, ids, count in zip(logits.float(), batch.input_ids, counts, strict=True):
            row, ids = row[-count - 1 : -1], ids[-count:]
            total = row.log_softmax(-1).gather(1, ids[:, None]).sum()
            row[:, self.processor.image_token_id] = -torch.inf  # an answer never holds one
            pairs.append((float(total), bool((row.argmax(-1) == ids).all())))
        return pairs


def decoding(asked: Mapping[str, Any], max_new_tokens: int) -> tuple[int, dict[str, Any]]:
    """Most new tokens and options of `dpn.inference.answer` from a task's `generation_kwargs`.

    Args:
        asked: strings `until` end an answer; it is sampled with a `temperature` above 0, unless
            `do_sample` is false; whatever else Hugging Face's `generate` knows is handed on.
        max_new_tokens: where the task has no limit.
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
            raise DataError(f"its {type(image).__name__} is no image; this model sees only images.")
    return images


@contextmanager
def _naming(requests: Sequence[Instance]) -> Iterator[None]:
    """An error of the block names the documents."""
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
