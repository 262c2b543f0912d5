"""The YAML files of methods: names and default arguments of routers and projectors.

Read without torch, so that a misspelt name is answered before it is imported.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

_PACKAGE = Path(__file__).parents[1]
CONFIG_DIR = next(d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir())
"""Folder of the YAML files: inside the installed package, or next to it in a checkout."""

Kind = Literal["router", "projector"]


def method_names(kind: Kind) -> list[str]:
    """Return the names of all methods of a kind, with those of third parties, sorted."""
    files = {path.stem for path in (CONFIG_DIR / kind).glob("*.yaml")}
    return sorted(files | {point.name for point in entry_points(group=f"dpn.{kind}s")})


def method_defaults(kind: Kind, name: str) -> tuple[dict[str, Any], set[str]]:
    """Return the arguments in a method's YAML file.

    Returns:
        The arguments with their values, and the names of those that refer to another section of a
        training config, such as `min_rows`. Both are empty without a file.
    """
    from omegaconf import OmegaConf

    file = CONFIG_DIR / kind / f"{name}.yaml"
    if not file.is_file():
        return {}, set()
    node: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    referring = {key for key, value in node.items() if isinstance(value, str) and "${" in value}
    return {k: v for k, v in node.items() if k not in referring | {"name"}}, referring
