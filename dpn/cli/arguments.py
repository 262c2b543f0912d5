"""key=value arguments of doors without a config."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from dpn.config.schema import check_arguments, matches
from dpn.runs.request import ConfigError


def read_arguments(function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """key=value arguments for an annotated function, for front doors without config.

    Raises:
        ConfigError: with everything that does not fit the function's signature.
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
