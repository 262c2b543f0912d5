"""Check a section of a config against the annotated signature of the constructor it is passed to.

Unknown keys, wrong types and missing values are found here. Checks return all problems as a list of
sentences instead of raising at the first one, so that one run shows every mistake.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from dpn.common.text import shorten

_EMPTY = inspect.Parameter.empty


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word most similar to `word`, or list all known words if none is similar."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    if not known:
        return "there are none."
    return f"expected one of {', '.join(f'`{name}`' for name in known)}."


def check_arguments(
    key: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    given: Collection[str] = (),
    also: Collection[str] = (),
    suggest: Collection[str] = (),
) -> list[str]:
    """Check the arguments of a call; return one sentence for each problem.

    Args:
        key: Key of the arguments in the config, e.g. `router`; empty for the root.
        function: Class or function with an annotated signature.
        arguments: Values from the config, resolved to plain Python values.
        given: Parameters that the code passes itself and the config must not set.
        also: Valid keys that are not parameters, e.g. `name`.
        suggest: Further names to suggest for an unknown key.
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
            expected = _describe(hints[name])
            problems.append(
                f"`{prefix}{name}={_show(value)}` has the wrong type; expected {expected}."
            )
    for name, parameter in named.items():
        if parameter.default is _EMPTY and name not in arguments:
            expected = _describe(hints.get(name, Any))
            problems.append(f"`{prefix}{name}` is missing; expected {expected}.")
    return problems


def keyword_only(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters after the `*`, or of a final `**name: Unpack[...]`."""
    return [n for n, p in _parameters(function).items() if p.kind is p.KEYWORD_ONLY]


def matches(value: Any, annotation: Any) -> bool:
    """Whether a plain YAML value fits an annotation; an annotation of an unknown kind fits all."""
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


def _describe(annotation: Any) -> str:
    """Describe an annotation in the words of a YAML author, e.g. `a number or null`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(option) for option in inner))
    if origin is Literal:
        return "one of " + ", ".join(f"`{option}`" for option in inner)
    if annotation is type(None):
        return "null"
    kind = origin or annotation
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    if kind in names:
        return names[kind]
    if inspect.isclass(kind):
        if issubclass(kind, Mapping) or typing.is_typeddict(kind):
            return "a mapping"
        if issubclass(kind, Path):
            return "a path"
        if kind in (list, tuple) or kind.__module__ == "collections.abc":
            items = [_describe(item) for item in inner if item is not ...]
            return f"a list ({', '.join(dict.fromkeys(items))})" if items else "a list"
        return f"a {kind.__name__}"
    return "any value"


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("self", None)
    for name, parameter in list(parameters.items()):
        hint = _hints(function).get(name)
        if parameter.kind is parameter.VAR_KEYWORD and get_origin(hint) is typing.Unpack:
            del parameters[name]
            (keys,) = get_args(hint)
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters |= {key: inspect.Parameter(key, kind) for key in keys.__annotations__}
    return parameters


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(inspect.unwrap(target))
    except (NameError, TypeError):  # annotations imported for type checkers only
        return {
            name: p.annotation
            for name, p in inspect.signature(function).parameters.items()
            if not isinstance(p.annotation, str)
        }


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return shorten(text, 60)
