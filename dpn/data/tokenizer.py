"""Train a small tokenizer on the training text, so that `model=tiny` needs no download."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpn.common.errors import FileError
from dpn.common.text import one_line
from dpn.data.conversation import IMAGE, ROUTER

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> Any:
    """Train a byte-level BPE tokenizer; the same texts give the same tokenizer.

    Every digit is a token of its own, so numbers are read digit by digit. The vocabulary contains
    all 256 bytes, so any text can be encoded.

    Args:
        texts: Training texts.
        vocab_size: Maximum size of the vocabulary; small corpora stay below it.

    Returns:
        A Hugging Face fast tokenizer with BOS, EOS, padding, `<image>` and `<ROUTER>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS, IMAGE, ROUTER],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=[IMAGE, ROUTER],
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer that `train_tokenizer` returned, after `save_pretrained(folder)`.

    Raises:
        FileError: If a file is missing or damaged.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the Rust library has no class of its own
        raise FileError(f"The tokenizer in {folder} is damaged: {one_line(str(error))}") from error
