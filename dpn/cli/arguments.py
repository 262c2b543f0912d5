"""Parse key=value arguments of commands without a Hydra config."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from dpn.config.schema import check_arguments, matches
from dpn.runs.request import ConfigError


def read_arguments(function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Parse key=value arguments for an annotated function.

    Raises:
        ConfigError: If arguments do not fit the function's signature; lists every problem.
    """
    pairs = [argument.partition("=") for argument in arguments]
    problems = [f"`{key}` is not of the form key=value." for key, sign, _ in pairs if not sign]
    hints = inspect.get_annotations(function, eval_str=True)
    values = {
        key: text if matches(text, hints.get(key, str)) else _value(text)
        for key, sign, text in pairs
        if sign
    }
    problems += check_arguments("", function, values)
    if problems:
        raise ConfigError(problems)
    return values


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
