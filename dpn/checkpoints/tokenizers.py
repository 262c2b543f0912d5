"""Read the tokenizer of a folder, including original ones with only a sentencepiece file."""

from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from dpn.common.files import read_json

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
        ImportError: If sentencepiece is needed and not installed.
    """
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    if not (folder / "tokenizer.model").is_file():
        raise FileNotFoundError(f"{folder} holds no tokenizer: looked for {', '.join(FILES)}.")
    settings = read_json(folder / "tokenizer_config.json") or {}
    # Defaults of Llama's files.
    usual = {"legacy": True, "add_bos_token": True}
    llama = LlamaTokenizer.from_pretrained(
        str(folder), **{name: settings.get(name, value) for name, value in usual.items()}
    )
    # When loaded again, LlamaTokenizer would rebuild itself without `legacy`; this class does not.
    return PreTrainedTokenizerFast(
        tokenizer_object=llama.backend_tokenizer,
        model_max_length=llama.model_max_length,
        padding_side=llama.padding_side,
        clean_up_tokenization_spaces=False,
        **llama.special_tokens_map,
    )
