"""`Chat`: a conversation that continues from its cache, so earlier turns are never computed again.

    model, processor = dpn.inference.load(folder)
    chat = Chat(model, processor)
    chat.ask("What is this?", [image])["answer"]
    chat.ask("And its colour?")["answer"]

Images belong to the first turn, and later turns keep its route.
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

    The generated ids of an answer are kept, never tokenized again from their text. So each answer
    is the one to the ids of the whole conversation, with the first turn's route.

    Args:
        model: Model in eval mode.
        processor: The model's processor.
        max_new_tokens: Maximum length of an answer.
        temperature: Sampling temperature; 0 always takes the most probable token.

    Attributes:
        messages: The conversation so far, in the form that `DPNProcessor.prompt` takes.
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
        """Start a new conversation."""
        self.messages: list[dict[str, str]] = []
        self._ids: list[int] = []
        self._cache = RaggedCache()

    def ask(self, prompt: str, images: Sequence[Image.Image] = (), streamer: Any = None) -> Answer:
        """Send a message and return the answer.

        Args:
            prompt: Text of the message; in the first turn `<image>` marks may set the places of the
                images.
            images: Images of the conversation, in the first turn only.
            streamer: Hugging Face streamer that receives the answer's ids as they are generated.

        Returns:
            The answer, see `dpn.inference.answer`; its `prefill_flops` cover this turn alone.

        Raises:
            DataError: If the message is invalid, or has an image in a later turn.
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
        """Return the ids so far, of which the cache lacks the last one, and those of a new turn."""
        if self._cache.columns != len(self._ids) - 1:
            raise RuntimeError("The last answer was interrupted; start a new conversation.")
        said = self._ids
        if said[-1] == self.processor.tokenizer.eos_token_id:
            said = said[:-1]  # the next turn begins with it
        turn = self.processor.follow_up(message, images=IMAGE in self.messages[0]["content"])
        ids = torch.tensor([[*said, *turn]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
