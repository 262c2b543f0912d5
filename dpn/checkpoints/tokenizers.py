"""Read the tokenizer of a folder, including original ones with only a sentencepiece file."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from dpn.common.errors import FileError
from dpn.common.json_files import read_object
from dpn.data.encoding import Tokenization

FILES = ("tokenizer.json", "tokenizer.model")


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in FILES)


def read_tokenizer(folder: Path) -> Any:
    """Read a fast tokenizer; only data is read, whatever class the folder's files name.

    Args:
        folder: Folder with `tokenizer.json`, or Llama's sentencepiece file `tokenizer.model`.

    Raises:
        FileNotFoundError: If it holds neither.
        FileError: If a file is damaged.
        ImportError: If sentencepiece is needed and not installed.
    """
    if not has_tokenizer(folder):
        raise FileNotFoundError(f"{folder} holds no tokenizer: looked for {', '.join(FILES)}.")
    read_object(folder / "tokenizer_config.json")  # for the sentence if it is damaged
    try:
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        return _read_pieces(folder)
    except (ImportError, FileError):
        raise
    except Exception as error:  # tokenizers and sentencepiece raise that class and others
        reason = " ".join(str(error).split())[:200]
        raise FileError(
            f"{folder} holds a damaged tokenizer ({type(error).__name__}: {reason}); copy its"
            " files again."
        ) from error


def _read_pieces(folder: Path) -> Any:
    """Read Llama's sentencepiece file."""
    settings = read_object(folder / "tokenizer_config.json") or {}
    legacy = settings.get("legacy")
    legacy = True if legacy is None else bool(legacy)  # the default of Llama's files
    llama = LlamaTokenizer.from_pretrained(
        str(folder), legacy=legacy, add_bos_token=settings.get("add_bos_token", True)
    )
    if len(llama) <= len(set(llama.all_special_tokens)):  # as of an empty file
        raise FileError(f"{folder / 'tokenizer.model'} holds no pieces; copy it again.")
    # When loaded again, LlamaTokenizer would rebuild itself without `legacy`; this class does not.
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_blank(llama.backend_tokenizer, legacy),
        model_max_length=llama.model_max_length,
        padding_side=llama.padding_side,
        clean_up_tokenization_spaces=False,
        **llama.special_tokens_map,
    )


def tokenization_of(folder: Path) -> Tokenization:
    """Return how the model of a folder tokenises text: what its processor says, and
    `transformers-4.31` for a released DPN model.
    """
    processor = read_object(folder / "processor_config.json") or {}
    config = read_object(folder / "config.json") or {}
    released: Tokenization = "transformers-4.31" if config.get("pooling") else "tokenizer"
    return processor.get("tokenization", released)


def _with_blank(tokenizer: Tokenizer, legacy: bool) -> Tokenizer:
    """Let a tokenizer put a blank before a text even if the text begins with one, as sentencepiece
    does and Hugging Face's fast tokenizers do not.

    Args:
        tokenizer: Tokenizer of Llama's pieces.
        legacy: Whether text after a special token gets a blank, too.
    """
    to_blank = normalizers.Replace(" ", "▁")
    # An added token stands for itself; otherwise the blank before it would belong to it.
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["normalized"] = False
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), to_blank])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
        return tokenizer
    # The first one adds a space to the text's start, where no space is left; the second turns it
    # into a blank.
    tokenizer.normalizer = to_blank
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(" ", "first", split=False),
            pre_tokenizers.Metaspace("▁", "never", split=False),
        ]
    )
    return tokenizer
