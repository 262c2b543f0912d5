"""Read the JSON files of a model folder."""

import json
from pathlib import Path
from typing import Any

from dpn.common.errors import FileError


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the object of a JSON file, or None if the file does not exist.

    Raises:
        FileError: If the file is damaged, or holds something else.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON ({error}); copy or write it again.") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} holds {type(value).__name__}, not an object; copy it again.")
    return value
