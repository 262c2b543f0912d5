"""Read key=value arguments of commands without a Hydra config; the function is the schema."""

from collections.abc import Callable, Sequence
from typing import Any

import yaml

from dpn.cli.help import asks_for_help, help_of_function
from dpn.common.schema import check_arguments, hints_of, matches
from dpn.runs.request import ConfigError


def read_arguments(function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Read key=value arguments for an annotated function.

    With `--help`, print what the command does, its arguments and examples, and exit.

    Raises:
        ConfigError: If arguments do not fit the function's signature; lists every problem.
    """
    if asks_for_help(arguments):
        print(help_of_function(function))
        raise SystemExit
    pairs = [argument.partition("=") for argument in arguments]
    problems = [
        f"`{key}` is not of the form key=value; --help lists all keys."
        for key, sign, _ in pairs
        if not sign
    ]
    hints = hints_of(function)
    values: dict[str, Any] = {}
    empty: set[str] = set()
    for key, sign, text in pairs:
        if key in values or key in empty:
            problems.append(f"`{key}` is given twice; give it once.")
        elif sign and text.strip():
            values[key] = _value(text, hints.get(key, str))
        elif sign:
            problems.append(f"`{key}=` is empty; give a value, or leave it out.")
            empty.add(key)
    problems += check_arguments("", function, values, given=empty)
    if problems:
        raise ConfigError(problems)
    return values


def _value(text: str, annotation: Any) -> Any:
    """Return the value of an argument; text stays as it is where the annotation allows text."""
    if matches(text, annotation):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
