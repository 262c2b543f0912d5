"""A constructor's annotated signature as the schema of its part of a config.

Problems come back as sentences, all of them, so that one run shows every mistake.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_EMPTY = inspect.Parameter.empty


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or the list of known words if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"there is {', '.join(f'`{name}`' for name in known) or 'none'}."


def check_arguments(
    key: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    given: Collection[str] = (),
    also: Collection[str] = (),
    suggest: Collection[str] = (),
) -> list[str]:
    """Everything wrong with the arguments of a call, one sentence each.

    Args:
        key: where the arguments stand in the config, e.g. `router`; empty for its root.
        function: a class or function with an annotated signature.
        arguments: what the config says, resolved to plain values.
        given: parameters that the code passes itself; the config may not name them.
        also: further keys that are no parameters but are fine here, e.g. `name`.
        suggest: further names to offer for an unknown key.
    """
    parameters = _parameters(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {
        name: p
        for name, p in parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in given
    }
    hints = _hints(function)
    prefix = f"{key}." if key else ""
    problems = []
    for name, value in arguments.items():
        if name in also:
            continue
        if name not in named:
            if not takes_any:
                known = nearest(name, {*named, *suggest})
                problems.append(f"`{prefix}{name}` is not a setting; {known}")
        elif not matches(value, hints.get(name, _EMPTY)):
            takes = describe(hints[name])
            problems.append(
                f"`{prefix}{name}={_show(value)}` has the wrong type, it takes {takes}."
            )
    for name, parameter in named.items():
        if parameter.default is _EMPTY and name not in arguments:
            takes = describe(hints.get(name, Any))
            problems.append(f"`{prefix}{name}` is missing, it takes {takes}.")
    return problems


def keyword_only(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters after the `*`."""
    return [n for n, p in _parameters(function).items() if p.kind is p.KEYWORD_ONLY]


def matches(value: Any, annotation: Any) -> bool:
    """Whether a plain YAML value can stand where the annotation is; unknown ones match all."""
    if annotation in (Any, _EMPTY) or isinstance(annotation, str | typing.TypeVar):
        return True
    if annotation is None or annotation is type(None):
        return value is None
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(matches(value, option) for option in inner)
    if origin is typing.Annotated:
        return matches(value, inner[0])
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    return _matches_class(value, origin or annotation, inner)


def _matches_class(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    if typing.is_typeddict(kind):
        return isinstance(value, Mapping)
    if not inspect.isclass(kind):
        return True
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    if issubclass(kind, tuple) and isinstance(value, Sequence) and not isinstance(value, str):
        if inner[1:] == (...,):
            return all(matches(item, inner[0]) for item in value)
        return not inner or (len(value) == len(inner) and all(map(matches, value, inner)))
    if kind is bool or isinstance(value, bool):
        return kind in (bool, object) and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float)
    if issubclass(kind, Path):
        return isinstance(value, str | Path)
    if isinstance(value, str):
        return issubclass(str, kind) and not inner
    if isinstance(value, Mapping):
        return issubclass(dict, kind) and _all_match(value.values(), inner[1:])
    if isinstance(value, Sequence):
        return issubclass(list, kind) and _all_match(value, inner)
    return isinstance(value, kind)


def _all_match(values: Iterable[Any], inner: tuple[Any, ...]) -> bool:
    return not inner or all(matches(value, inner[0]) for value in values)


def describe(annotation: Any) -> str:
    """An annotation in words a YAML author uses."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(option) for option in inner))
    if origin is Literal:
        return "one of " + ", ".join(f"`{option}`" for option in inner)
    if annotation is type(None):
        return "null"
    kind = origin or annotation
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if kind in words:
        return words[kind]
    if inspect.isclass(kind):
        if issubclass(kind, Mapping) or typing.is_typeddict(kind):
            return "a mapping"
        if issubclass(kind, Path):
            return "a path"
        if kind in (list, tuple) or kind.__module__ == "collections.abc":
            items = [describe(item) for item in inner if item is not ...]
            return f"a list ({', '.join(dict.fromkeys(items))})" if items else "a list"
        return f"a {kind.__name__}"
    return "anything"


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("self", None)
    return parameters


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(inspect.unwrap(target))
    except (NameError, TypeError):  # names that exist for type checkers only
        return {
            name: p.annotation
            for name, p in _parameters(function).items()
            if not isinstance(p.annotation, str)
        }


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
