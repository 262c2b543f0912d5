"""Find weights by name: a local file or folder, or one on the Hugging Face Hub."""

import functools
import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

#: `organisation/model`, and the path of one of its files.
_REMOTE = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?")
_TIMEOUT_S = 5.0
#: Files of a model; repositories often hold the same weights in other formats too.
_WANTED = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")


def why_missing(name: str) -> str | None:
    """What is wrong with a name, as the end of a sentence; None if it can be found."""
    if Path(name).exists():
        return None
    remote = _REMOTE.fullmatch(name)
    if remote is None:
        return "does not exist"
    answer = _ask_hub(remote[1])
    if answer == "unreachable":
        return "does not exist here, and the Hugging Face Hub cannot be reached"
    return None if answer == "yes" else "exists neither here nor on the Hugging Face Hub"


def find(name: str) -> Path:
    """The local file or folder of a name, downloaded if necessary.

    Raises:
        FileNotFoundError: If it exists neither here nor on the Hub.
    """
    if Path(name).exists():
        return Path(name)
    if problem := why_missing(name):
        raise FileNotFoundError(f"{name} {problem}; give a file, a folder or a Hub id.")
    remote = _REMOTE.fullmatch(name)
    assert remote is not None
    if remote[2]:
        return Path(hf_hub_download(remote[1], remote[2]))
    return Path(snapshot_download(remote[1], allow_patterns=list(_WANTED)))


@functools.cache
def _ask_hub(repository: str) -> str:
    """`yes`, `no` or `unreachable`."""
    try:
        HfApi().model_info(repository, timeout=_TIMEOUT_S)
    except (RepositoryNotFoundError, GatedRepoError):
        return "no"
    except Exception:  # network errors differ between versions of the Hub's library
        return "unreachable"
    return "yes"
