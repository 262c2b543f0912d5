"""Folders of tiny stock VLMs with their processors, as `from_pretrained` reads them."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Idefics3Processor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from tests.vlm_batches import IMAGE, PAD, TILE
from tests.vlms import build

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant:{% endif %}"
)
_SPECIAL = {IMAGE: "<image>", PAD: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>"}
_IDEFICS = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
_WORDS = ["user", "assistant", ":", "What", "is", "in", "this", "image", "?"]


def tokenizer():
    """Return a tokenizer of whole words for the vocabulary of `tests.vlms`."""
    words = [*_IDEFICS, *_ROWS, *_WORDS]
    ids = [number for number in range(128) if number not in _SPECIAL]
    names = _SPECIAL | dict(zip(ids, words, strict=False))
    names |= {number: f"word{number}" for number in range(128) if number not in names}
    made = Tokenizer(models.WordLevel({w: i for i, w in names.items()}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", *_IDEFICS, *_ROWS],
    )


def processor(name, vlm):
    """Return the processor of a tiny model; those of other models need torchvision."""
    side = {"height": TILE, "width": TILE}
    common = {"tokenizer": tokenizer(), "chat_template": TEMPLATE}
    clip = {"patch_size": 14, "vision_feature_select_strategy": "default"}
    clip |= {"num_additional_image_tokens": 1}
    if name == "llava":
        images = LlavaImageProcessorPil(size={"shortest_edge": TILE}, crop_size=side)
        return LlavaProcessor(images, **common, **clip)
    if name == "llava_next":
        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": TILE},
            crop_size=side,
            image_grid_pinpoints=vlm.config.image_grid_pinpoints,
        )
        return LlavaNextProcessor(images, **common, **clip)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 128}, max_image_size={"longest_edge": 64}
    )
    return Idefics3Processor(images, image_seq_len=4, **common)


def save(folder, name, **text):
    """Write model and processor; `text` changes settings of the text model."""
    vlm = build(name, **text)
    vlm.save_pretrained(folder)
    processor(name, vlm).save_pretrained(folder)
    return folder
