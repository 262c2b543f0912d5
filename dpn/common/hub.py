"""Find weights by name: a local file or folder, or one on the Hugging Face Hub."""

import functools
import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

#: `organisation/model`, and the path of one of its files.
_REMOTE = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?")
_TIMEOUT_S = 5.0
#: Files of a model without its weights.
_SMALL = ("*.json", "*.model", "*.txt", "*.jinja")
#: Files of a model; repositories often hold the same weights in other formats too.
_WANTED = (*_SMALL, "*.safetensors", "*.bin")


def is_id(name: str) -> bool:
    """Whether a name has the form of a Hub id, `organisation/model`."""
    remote = _remote(name)
    return remote is not None and remote[1] is None


def _remote(name: str) -> tuple[str, str | None] | None:
    """Split a name into a Hub id and the path of a file, if any; None if it cannot be a Hub id."""
    found = _REMOTE.fullmatch(name)
    if found is None or ".." in name:
        return None
    try:
        validate_repo_id(found[1])
    except HFValidationError:
        return None
    return found[1], found[2]


def why_missing(name: str) -> str | None:
    """What is wrong with a name, as the end of a sentence; None if it can be found."""
    if Path(name).exists():
        return None
    remote = _remote(name)
    if remote is None:
        return "does not exist"
    answer = _ask_hub(remote[0])
    if answer == "unreachable":
        if _downloaded(remote[0]):
            return None
        return "does not exist here, and the Hugging Face Hub cannot be reached"
    return None if answer == "yes" else "exists neither here nor on the Hugging Face Hub"


def find(name: str, weights: bool = True) -> Path:
    """The local file or folder of a name, downloaded if necessary.

    Without a connection, an earlier download is used.

    Args:
        name: File, folder, Hub id, or Hub id with the path of one of its files.
        weights: Whether the weights of a Hub id are needed, or only its small files.

    Raises:
        FileNotFoundError: If it exists neither here nor on the Hub.
        PermissionError: If the Hub asks for a login or for consent to a licence.
    """
    if Path(name).exists():
        return Path(name)
    if problem := why_missing(name):
        raise FileNotFoundError(f"{name} {problem}; give a file, a folder or a Hub id.")
    remote = _remote(name)
    assert remote is not None
    if _ask_hub(remote[0]) == "unreachable" and not remote[1]:
        return Path(snapshot_download(remote[0], local_files_only=True))
    try:
        if remote[1]:
            return Path(hf_hub_download(remote[0], remote[1]))
        wanted = _WANTED if weights else _SMALL
        return Path(snapshot_download(remote[0], allow_patterns=list(wanted)))
    except GatedRepoError as error:
        raise PermissionError(
            f"{remote[0]} is gated: accept its licence on https://huggingface.co/{remote[0]}, and"
            " log in: hf auth login."
        ) from error


@functools.cache
def _ask_hub(repository: str) -> str:
    """`yes`, `no` or `unreachable`."""
    try:
        HfApi().model_info(repository, timeout=_TIMEOUT_S)
    except GatedRepoError:
        return "yes"  # `find` says how to get access
    except RepositoryNotFoundError:
        return "no"
    except Exception:  # network errors differ between versions of the Hub's library
        return "unreachable"
    return "yes"


@functools.cache
def _downloaded(repository: str) -> bool:
    """Whether an earlier download of a repository is in the Hub's cache."""
    try:
        snapshot_download(repository, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True
