"""What `--help` prints: what a command does, its arguments or settings, and examples.

Everything is read from docstrings, signatures and YAML files, without importing torch.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shutil import get_terminal_size
from textwrap import dedent, indent, wrap
from typing import Annotated, Any, get_args, get_origin

import yaml

from dpn.common.ranges import Choice, Form
from dpn.common.schema import describe, hints_of, parameters_of
from dpn.common.text import one_line

FLAGS = """\
  -m                   run every combination of values with commas: key=1,2
  --cfg job            print all settings with their values, and do nothing else
  -sc install=bash     eval "$(dpn-NAME -sc install=bash)": complete names of dpn-NAME with TAB
  --hydra-help         further flags of Hydra
"""


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return bool({"--help", "-h"} & {*arguments})


def help_of_function(*functions: Callable[..., Any]) -> str:
    """Describe a command without a config: what it does, and the arguments of its functions."""
    parts = [_purpose(functions[0])]
    for function in functions:
        words = _argument_words(function)
        rows = [
            (_usage(name, parameter), _limits(hints_of(function).get(name)), words.get(name, ""))
            for name, parameter in parameters_of(function).items()
        ]
        parts.append("\n".join(["Arguments:", *_table(rows)]))
    return "\n\n".join(parts)


def help_of_config(function: Callable[..., Any], config_name: str, folder: Path) -> str:
    """Describe a command with a config: its module's docstring, groups, settings and flags.

    Args:
        function: Function of the command.
        config_name: Name of its YAML file.
        folder: Folder of the YAML files.
    """
    groups, settings = _groups(config_name, folder)
    rows = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        names = sorted(file.stem for file in path.glob("*.yaml"))
        if path.name in groups:
            default = groups[path.name]
            marked = [f"{name} (default)" if name == default else name for name in names]
            rows.append((path.name, ", ".join(marked)))
    parts = [
        _purpose(function),
        "\n".join(["Groups, chosen by group=choice:", *_table(rows)]),
        f"Settings, changed by key=value:\n{indent(settings, '  ')}",
        f"Flags:\n{FLAGS}",
    ]
    return "\n\n".join(part.rstrip() for part in parts)


def _purpose(function: Callable[..., Any]) -> str:
    return (sys.modules[function.__module__].__doc__ or inspect.getdoc(function) or "").strip()


def _usage(name: str, parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return name.upper()
    if parameter.default is parameter.empty:
        return f"{name}=..."
    return f"{name}={'null' if parameter.default is None else parameter.default}"


def _limits(annotation: Any) -> str:
    """Describe what an argument takes, e.g. `a whole number, at least 1`."""
    limits = list(_metadata(annotation))
    kind = describe(annotation) if annotation is not None else "a string"
    worded = any(isinstance(limit, Form | Choice) for limit in limits)
    kinds = [] if worded else [kind.removesuffix(" or null")]
    return ", ".join([*kinds, *map(str, limits)])


def _metadata(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from get_args(annotation)[1:]
    for inner in get_args(annotation):
        yield from _metadata(inner)


def _argument_words(function: Callable[..., Any]) -> dict[str, str]:
    """Return the description of each argument in a docstring's Args section."""
    section = (inspect.getdoc(function) or "").partition("Args:\n")[2]
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^(\w+): (.*(?:\n +.*)*)", dedent(section), re.MULTILINE)
    return {name: one_line(text) for name, text in found}


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with aligned columns; the last one is wrapped at the width of a terminal."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    start = 2 + sum(widths) + 2 * len(widths)
    room = max(40, get_terminal_size((100, 24)).columns - start)
    lines = []
    for *cells, last in rows:
        head = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        first, *more = wrap(last, room) or [""]
        lines.append(f"  {head}  {first}".rstrip())
        lines += [" " * start + line for line in more]
    return lines


def _groups(config_name: str, folder: Path) -> tuple[dict[str, str | None], str]:
    """Return the groups of a config with their defaults, and the text of its own settings."""
    text = (folder / f"{config_name}.yaml").read_text()
    _, _, settings = re.split(r"^(defaults:\n(?: .*\n)+)\n*", text, maxsplit=1, flags=re.M)
    groups: dict[str, str | None] = {}
    for entry in yaml.safe_load(text)["defaults"]:
        if isinstance(entry, dict):
            groups |= {key.strip("/"): value for key, value in entry.items()}
        elif entry != "_self_":
            inherited, before = _groups(entry, folder)
            groups, settings = inherited | groups, before + settings
    if "recipe" in groups:  # a recipe chooses the other groups of a training run
        recipe = folder / "recipe" / f"{groups['model']}.yaml"
        for entry in yaml.safe_load(recipe.read_text())["defaults"]:
            if isinstance(entry, dict):
                groups |= {key.strip("/"): value for key, value in entry.items()}
    groups.pop("hydra", None)
    return groups, settings
