"""Classes that a config may choose with `_target_`, and objects of them.

A config can come from somewhere else, so a `_target_` is compared with a list of packages, as text,
before anything is imported. Another package enters itself into the list with an entry point:

    [project.entry-points."dpn.targets"]
    my_package = "my_package"
"""

import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from dpn.common.errors import SettingError

#: Packages whose classes a config may name.
PACKAGES = ("dpn", "lightning.pytorch", "torch.optim")
_PATH = re.compile(r"[a-zA-Z_]\w*(\.[a-zA-Z_]\w*)+")
#: Classes that Hydra's own section may name: launchers, sweepers and callbacks.
_OF_HYDRA = re.compile(
    r"(hydra\._internal\.core_plugins\.\w+|hydra\.experimental\.callbacks|hydra_plugins\.\w+\.\w+"
    r"|optuna\.(samplers|pruners))\.[A-Z]\w*"
)


@cache
def packages() -> tuple[str, ...]:
    """Return the packages whose classes a config may name."""
    return (*PACKAGES, *(point.value for point in entry_points(group="dpn.targets")))


def refusal(target: Any) -> str | None:
    """Say why a `_target_` is refused, as the end of a sentence; None if it is allowed.

    Nothing is imported.
    """
    allowed = packages()
    if not isinstance(target, str) or not _PATH.fullmatch(target):
        return "is not the import path of a class"
    if not target.startswith(tuple(f"{package}." for package in allowed)):
        return (
            f"is not a class of {', '.join(allowed[:-1])} or {allowed[-1]}; a package that declares"
            " an entry point of group `dpn.targets` is allowed, too"
        )
    return None


def refused_of_hydra(section: Any) -> list[str]:
    """Return a sentence for each `_target_` in plain values of section `hydra` that is refused."""
    return [
        f"`{key}={target}` is not a class of Hydra or of a plugin of Hydra."
        for key, target in all_targets(section, "hydra")
        if not _OF_HYDRA.fullmatch(str(target))
    ]


def resolve(target: Any) -> type[Any]:
    """Import the class that a `_target_` names.

    Raises:
        SettingError: If it is not a class of an allowed package; nothing else is imported.
    """
    if reason := refusal(target):
        raise SettingError(f"`_target_={target}` {reason}.")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingError(f"`_target_={target}` cannot be imported: {error}.") from error
    if not inspect.isclass(found) or refusal(f"{found.__module__}.{found.__qualname__}"):
        raise SettingError(f"`_target_={target}` is not a class of its package; name a class.")
    return found


def build(node: dict[str, Any], **more: Any) -> Any:
    """Build the object that a section with a `_target_` describes, and those inside of it.

    Args:
        node: Plain values of the section.
        more: Further arguments, which the code passes.
    """
    return resolve(node["_target_"])(**arguments(node), **more)


def arguments(node: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a section with a `_target_`, with the objects inside of it built."""
    return {key: _built(value) for key, value in node.items() if key != "_target_"}


def _built(value: Any) -> Any:
    if isinstance(value, dict):
        return build(value) if "_target_" in value else {k: _built(v) for k, v in value.items()}
    return [_built(item) for item in value] if isinstance(value, list) else value


def all_targets(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield key and value of each `_target_` in plain values, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            inner = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield inner, value
            yield from all_targets(value, inner)
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from all_targets(value, f"{key}.{place}")
