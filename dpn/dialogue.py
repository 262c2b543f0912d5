"""A conversation that goes on from its cache: earlier turns are never computed again.

    model, processor = dpn.inference.load(folder)
    chat = Chat(model, processor)
    chat.ask("What is this?", [image])["answer"]
    chat.ask("And its colour?")["answer"]

Images belong to the first turn, and what was chosen for their rows there stays.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dpn.cost import append_flops, prefill_flops
from dpn.data.conversation import IMAGE
from dpn.decoder.cache import RaggedCache
from dpn.inference import Answer, describe, generate, question
from dpn.model import DPNForConditionalGeneration, DPNProcessor


class Chat:
    """One conversation with a model.

    The ids that the model said are kept, never cut anew from their text; so answers are those to
    the whole conversation's ids, with the first turn's route.

    Args:
        model: in eval mode.
        processor: of the model.
        max_new_tokens: upper limit of an answer.
        temperature: 0 takes the most probable token, more samples.

    Attributes:
        messages: what was said, as `DPNProcessor.prompt` takes it.
    """

    def __init__(
        self,
        model: DPNForConditionalGeneration,
        processor: DPNProcessor,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
    ):
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.options: dict[str, Any] = {"num_beams": 1, "use_cache": True}
        if temperature:
            self.options |= {"do_sample": True, "temperature": float(temperature)}
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.messages: list[dict[str, str]] = []
        self._ids: list[int] = []
        self._cache = RaggedCache()

    def ask(self, prompt: str, images: Sequence[Image.Image] = (), streamer: Any = None) -> Answer:
        """Say something and get the answer.

        Args:
            prompt: the words; in the first turn `<image>` marks may say where images belong.
            images: what the conversation is about, in the first turn only.
            streamer: Hugging Face's, is given the answer's ids as they come.

        Returns:
            See `dpn.inference.answer`; prefill_flops are those of this turn alone.

        Raises:
            DataError: if the words can not be asked, or bring an image into a later turn.
        """
        message = question(prompt, images)
        if self.messages:
            cache, inputs = self._cache, self._follow_up(message)
        else:
            cache = RaggedCache()
            inputs = dict(self.processor(messages=[message], images=list(images) or None))
        seen, held = cache.columns, [int(stage.lengths[0]) for stage in cache.stage_of]
        made = generate(
            self.model,
            self.processor,
            inputs,
            self.max_new_tokens,
            past_key_values=cache,
            streamer=streamer,
            **self.options,
        )
        columns = inputs["input_ids"].shape[1] - seen
        if held:
            flops = append_flops(columns, held, self.model.config.text_config)
        else:
            flops = prefill_flops(self.model, made.trace, [columns - len(images)])[0]
        answer = describe(self.model, self.processor, made, [flops])[0]
        self._ids, self._cache = made.ids[0].tolist(), cache
        self.messages += [message, {"role": "assistant", "content": answer["answer"]}]
        return answer

    def _follow_up(self, message: dict[str, str]) -> dict[str, Tensor]:
        """All ids so far, of which the cache lacks the last one, and the new turn's."""
        if self._cache.columns != len(self._ids) - 1:
            raise RuntimeError("An answer was broken off; start a new conversation.")
        said = self._ids
        if said[-1] == self.processor.tokenizer.eos_token_id:
            said = said[:-1]  # it is how the next turn begins
        turn = self.processor.follow_up(message, images=IMAGE in self.messages[0]["content"])
        ids = torch.tensor([[*said, *turn]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
