"""`DPNProcessor`: converts text and images to model inputs, and ids back to text.

from dpn import DPNProcessor
processor = DPNProcessor.from_pretrained("outputs/.../model")
prompt = processor.prompt([{"role": "user", "content": "<image>\\nWhat is this?"}])
inputs = processor(text=prompt, images=image)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import AddedToken, AutoTokenizer, BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file, logging

from dpn.common.errors import DPNError, FileError, SettingError
from dpn.common.files import write_json
from dpn.common.json_files import read_object
from dpn.common.text import one_line
from dpn.data.batch import DataError, stack_images
from dpn.data.chat_template import chat_template
from dpn.data.conversation import (
    IMAGE,
    ROUTER,
    Piece,
    Turn,
    check_words,
    read_turns,
    render,
    render_follow_up,
    template,
)
from dpn.data.encoding import ENCODERS, Tokenization, encode, tokenize
from dpn.data.images import CLIP_MEAN, CLIP_STD, ImageMode, ImageTransform
from dpn.model.image_arguments import as_pil, group_images, in_order
from dpn.model.processor_options import ProcessorOptions

log = logging.get_logger(__name__)
CONFIG_NAME = "processor_config.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
Message = Mapping[str, Any]


class DPNProcessor(ProcessorMixin):
    """Tokenizer, conversation template and image transform of a model.

    Hugging Face's `apply_chat_template` and pipelines work, too.

    Args:
        tokenizer: Hugging Face fast tokenizer with BOS and EOS; missing `<image>` and `<ROUTER>`
            tokens are added, and a missing padding token becomes the unknown token as in LLaVA.
        template: `v1`, `short` (v1 without its system text) or `plain`.
        image_mode: `pad`, `square` or `none`, see `ImageTransform`.
        image_size: Height and width in pixels.
        image_mean: Mean of each channel, in [0, 1].
        image_std: Standard deviation of each channel.
        patch_size: Patch size of the vision tower in pixels.
        router_token: Whether `<ROUTER>` ends every human turn of a sample with images.
        tokenization: `tokenizer`: as the tokenizer itself does it; `transformers-4.31`: the ids
            with which the released DPN models were trained, see `dpn.data.transformers_4_31`.

    Attributes:
        transform: Conversion of a PIL image to normalised pixels `[3, H, W]`.
        chat_template: Jinja version of `prompt`, saved for other programs and never read back.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "v1",
        image_mode: ImageMode = "pad",
        image_size: int = 336,
        image_mean: tuple[float, float, float] = CLIP_MEAN,
        image_std: tuple[float, float, float] = CLIP_STD,
        patch_size: int = 14,
        router_token: bool = True,
        tokenization: Tokenization = "tokenizer",
    ):
        if tokenization not in ENCODERS:
            raise SettingError(
                f"unknown tokenization {tokenization!r}; choose {' or '.join(ENCODERS)}."
            )
        self.template, self.router_token = template, router_token
        self.tokenization: Tokenization = tokenization
        self.style = _template(template)
        super().__init__(
            _prepare(tokenizer, router_token), chat_template=chat_template(self.style, router_token)
        )
        self.transform = ImageTransform(
            image_mode, image_size, _rgb(image_mean), _rgb(image_std), patch_size
        )

    @property
    def image_processor(self) -> Self:
        """The processor itself, which pipelines look for to make batches and to save it."""
        return self

    @property
    def image_token_id(self) -> int:
        """Id of `<image>`, which stands for an image in `input_ids`."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE)

    @property
    def router_token_id(self) -> int | None:
        """Id of `<ROUTER>`; None if it is not used."""
        return self.tokenizer.convert_tokens_to_ids(ROUTER) if self.router_token else None

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self.tokenizer.pad_token_id

    @property
    def vocab_size(self) -> int:
        """Number of embeddings that a model needs for the tokenizer."""
        return len(self.tokenizer)

    def encode(
        self,
        turns: Sequence[Turn],
        images: int,
        template: str | None = None,
        max_length: int | None = None,
    ) -> tuple[list[int], list[int]]:
        """Encode a conversation as ids and labels, see `dpn.data.encoding.encode`."""
        style = _template(template) if template else self.style
        return encode(
            *(turns, images, self.tokenizer, style, self.router_token, max_length),
            tokenization=self.tokenization,
        )

    def tokenize(self, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
        """Return the ids, starting with BOS, and the labels of rendered pieces."""
        return tokenize(pieces, self.tokenizer, self.tokenization)

    def prompt(self, messages: Sequence[Message]) -> str:
        """Build the prompt for the next answer: `... USER: <image>\\nWhat?<ROUTER> ASSISTANT:`.

        Args:
            messages: Messages of the form `{"role": "user" | "assistant", "content": text or typed
                parts}`, or with LLaVA's keys `from` and `value`; the last one is the user's.

        Raises:
            DataError: If the messages are invalid, see `read_turns`.
        """
        turns = read_turns(messages)
        check_words(turns, self.tokenizer.eos_token)
        images = sum(turn.text.count(IMAGE) for turn in turns)
        pieces = render(turns, images, self.style, self.tokenizer.eos_token, self.router_token)
        return "".join(piece.text for piece in pieces)

    def follow_up(self, message: Message, images: bool) -> list[int]:
        """Encode what follows the text of an answer: the end of its turn and the user's next turn.

        Args:
            message: The user's next message, without images; see `prompt`.
            images: Whether the conversation has images.

        Raises:
            DataError: If the message contains an image or is invalid, see `read_turns`.
        """
        turns = read_turns([message])
        if not self.style.instruction:
            raise DataError(
                f"template={self.template} leaves out the user's text, so there are no follow-up"
                " turns; ask one question per conversation."
            )
        if IMAGE in turns[0].text:
            raise DataError(
                f"{IMAGE} stands in a later turn, but images are only read with the first turn;"
                " start a new conversation."
            )
        eos = self.tokenizer.eos_token
        check_words(turns, eos)
        piece = render_follow_up(turns[0].text, self.style, eos, self.router_token and images)
        return self.tokenize([piece])[0][1:]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        *,
        messages: Sequence[Message] | Sequence[Sequence[Message]] | None = None,
        videos: None = None,
        audio: None = None,
        **options: Any,
    ) -> BatchFeature:
        """Convert prompts and their images to model inputs.

        Args:
            text: One or several prompts, with one `<image>` mark per image. Hugging Face's order,
                images first, is recognised.
            images: PIL images, files, URLs, arrays or tensors: one, a flat list in the order of the
                marks, or one list per prompt.
            messages: One or several conversations in place of `text`, see `prompt`.
            videos: Accepted for Hugging Face, always None.
            audio: Accepted for Hugging Face, always None.
            options: See `ProcessorOptions`; by default padding is on the left, for generation.

        Returns:
            `input_ids [B, T]`, `attention_mask [B, T]` and, with images, `pixel_values [I, 3, Hmax,
            Wmax]`, `image_sizes [I, 2]` and, for several prompts, `image_sample [I]`.

        Raises:
            DataError: If marks and images do not match, or truncation would lose an image.
            SettingError: If an option that matters is not supported.
        """
        chosen = ProcessorOptions.read(options)
        text, images = in_order(text, images)
        if videos is not None or audio is not None:
            raise SettingError(
                "The model supports text and images only; leave out videos and audio."
            )
        if (text is None) == (messages is None):
            raise SettingError("Give the processor either `text` or `messages`.")
        texts: list[str] = [text] if isinstance(text, str) else list(text or [])
        if messages:
            conversations: Any = [messages] if isinstance(messages[0], Mapping) else messages
            texts = [self.prompt(one) for one in conversations]
        if not texts or not all(isinstance(one, str) for one in texts):
            raise SettingError(
                "The processor needs a prompt, a list of prompts, or conversations; got"
                f" {text if messages is None else messages!r}."
            )
        rows = [self._ids(one, chosen) for one in texts]
        pixels = [
            [self.transform(as_pil(image, chosen.input_data_format)) for image in own]
            for own in group_images(images, texts)
        ]
        tensors = stack_images(pixels)
        if len(texts) == 1:  # so that pipelines can join the inputs of several prompts
            tensors.pop("image_sample", None)
        if chosen.return_tensors is None and not chosen.pads:
            lists = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
            return BatchFeature(lists | chosen.convert(tensors))
        ids, mask = chosen.pad(rows, self.tokenizer)
        return BatchFeature(chosen.convert({"input_ids": ids, "attention_mask": mask, **tensors}))

    def _ids(self, text: str, options: ProcessorOptions) -> list[int]:
        """Encode a prompt, by default with BOS at its beginning."""
        bos = self.tokenizer.bos_token
        start = 0
        if not options.add_special_tokens:
            start = 0 if text.startswith(bos) else 1
            text = text.removeprefix(bos)
            opening = self.style.system + self.style.human
            if start and opening and text.startswith(opening):
                log.warning_once(
                    f"add_special_tokens=False leaves out {bos}, with which every conversation"
                    " begins; to keep it in TRL, set processor.chat_template ="
                    " processor.tokenizer.bos_token + processor.chat_template."
                )
        ids = self.tokenize([Piece(text)])[0][start:]
        return options.cut(ids, self.tokenizer, self.image_token_id)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Render conversations like Hugging Face, or convert them to model inputs.

        The template does not write BOS. It is therefore added even if `processor_kwargs` hold
        `add_special_tokens=False`, which TRL gives for templates that do.
        """
        if own := kwargs.get("processor_kwargs"):
            kept = {name: value for name, value in own.items() if name != "add_special_tokens"}
            kwargs = {**kwargs, "processor_kwargs": kept}
        return super().apply_chat_template(conversation, *args, **kwargs)

    def batch_decode(self, ids: Tensor | Sequence[Sequence[int]], **options: Any) -> list[str]:
        """Decode ids `[B, T]`, by default without special tokens, and strip outer whitespace."""
        return [self.decode(row, **options) for row in ids]

    def decode(self, ids: Tensor | Sequence[int], **options: Any) -> str:
        """Decode ids `[T]`, see `batch_decode`."""
        return self.tokenizer.decode(ids, **{"skip_special_tokens": True, **options}).strip()

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Save the tokenizer's files, `processor_config.json` and `chat_template.jinja`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / CONFIG_NAME, {"processor_class": type(self).__name__, **self.to_dict()})
        (folder / CHAT_TEMPLATE_NAME).write_text(self.chat_template, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return all constructor arguments except the tokenizer."""
        recipe = self.transform
        return {
            "template": self.template,
            "image_mode": recipe.mode,
            "image_size": recipe.size,
            "image_mean": list(recipe.mean),
            "image_std": list(recipe.std),
            "patch_size": recipe.multiple,
            "router_token": self.router_token,
            "tokenization": self.tokenization,
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Load a processor from a folder or the Hub; no code is loaded or run.

        Args:
            folder: A folder, or a name on the Hub.
            options: Arguments of the processor to override, and `revision`, `cache_dir`, `token`,
                `local_files_only`.

        Raises:
            OSError: If the folder or a file does not exist.
            FileError: If a file is damaged, or has settings that a processor does not know.
        """
        hub = ("revision", "cache_dir", "token", "local_files_only")
        where = {name: options[name] for name in hub if name in options}
        file = cached_file(str(folder), CONFIG_NAME, **where)
        known = set(cls.__init__.__annotations__) - {"tokenizer"}
        settings = _read_settings(Path(file), known)
        settings.update({name: value for name, value in options.items() if name in known})
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, **where)
        except OSError:
            raise
        except Exception as error:  # damaged files raise about ten types
            raise FileError(
                f"The tokenizer of {folder} is damaged or incomplete ({one_line(str(error))}); copy"
                " its files again."
            ) from error
        try:
            made = cls(tokenizer, **settings)
            made.tokenize([Piece("a")])  # a tokenizer's settings are read when it is used
            return made
        except (DPNError, TypeError, ValueError, AttributeError) as error:
            raise FileError(
                f"{file}, or the tokenizer next to it, cannot be used: {one_line(str(error))}"
            ) from error


def _read_settings(file: Path, known: set[str]) -> dict[str, Any]:
    """Read the arguments of a processor from its `processor_config.json`."""
    settings = read_object(file) or {}
    settings.pop("processor_class", None)
    if unknown := sorted(set(settings) - known):
        raise FileError(
            f"{file} has unknown settings {', '.join(unknown)};"
            f" known are {', '.join(sorted(known))}."
        )
    return settings


def _rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


_template = template  # public methods have an argument of the name `template`


def _prepare(tokenizer: Any, router_token: bool) -> Any:
    """Check a tokenizer and add missing tokens."""
    if not getattr(tokenizer, "is_fast", False):
        raise SettingError("DPNProcessor needs a fast tokenizer (one with a tokenizer.json).")
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise SettingError(
            "DPNProcessor needs a tokenizer with BOS and EOS tokens; set them, for example"
            " tokenizer.bos_token = tokenizer.pad_token."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    known = tokenizer.get_vocab()
    for role in ("bos_token", "eos_token", "pad_token"):
        if (token := getattr(tokenizer, role)) not in known:
            raise SettingError(
                f"The tokenizer's {role} {token!r} is not in its vocabulary; add it, or set"
                f" tokenizer.{role} to a token that is."
            )
    wanted = [IMAGE, *([ROUTER] if router_token else [])]
    missing = [AddedToken(t, special=True, normalized=False) for t in wanted if t not in known]
    tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer
