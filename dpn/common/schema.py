"""Check a section of a config against the annotated signature of the constructor it is passed to.

Unknown keys, wrong types, numbers out of range (`dpn.common.ranges`) and missing values are found
here. Checks return all problems as a list of
sentences instead of raising at the first one, so that one run shows every mistake.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin

from dpn.common.ranges import FINITE, Choice, Form, Range
from dpn.common.text import shorten

_EMPTY = inspect.Parameter.empty
_FEW = 5
_LISTED = 20
"""Maximum number of names in a sentence."""
_LARGEST = 2**53
"""Largest whole number that is exact in every format that a run writes."""


def nearest(word: str, known: Iterable[str], listing: str = "") -> str:
    """Suggest the known word that is most similar to `word`; if none is similar, list the words.

    Args:
        word: Unknown word.
        known: Valid words.
        listing: Command that lists all words, for sentences that would become too long.
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    if not known:
        return "there are none."
    if len(known) <= _LISTED:
        return f"expected one of {_names(known)}."
    few = difflib.get_close_matches(word, known, n=_FEW, cutoff=0.0)
    rest = f"list all {len(known)} with {listing}" if listing else f"there are {len(known)}"
    return f"the most similar are {_names(few)}; {rest}."


def _names(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def check_arguments(
    key: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    given: Collection[str] = (),
    also: Collection[str] = (),
    suggest: Collection[str] = (),
    ranges: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Check the arguments of a call; return one sentence for each problem.

    Args:
        key: Key of the arguments in the config, e.g. `router`; empty for the root.
        function: Class or function with an annotated signature.
        arguments: Values from the config, resolved to plain Python values.
        given: Parameters that the code passes itself and the config must not set.
        also: Valid keys that are not parameters, e.g. `name`.
        suggest: Further names to suggest for an unknown key.
        ranges: Annotations with ranges for parameters of a library, whose signature has none.
    """
    parameters = parameters_of(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {
        name: p
        for name, p in parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in given
    }
    hints = hints_of(function)
    prefix = f"{key}." if key else ""
    problems = []
    for name, value in arguments.items():
        if name in also:
            continue
        full, hint = f"`{prefix}{name}={_show(value)}`", hints.get(name)
        if name not in named and not takes_any:
            known = nearest(name, {*named, *suggest})
            problems.append(f"`{prefix}{name}` is not a setting; {known}")
        elif name in named and name in hints and not matches(value, hint):
            problems.append(f"{full} has the wrong type; expected {describe(hint)}.")
        else:
            problems += _violations(f"{prefix}{name}", value, ranges.get(name, hint))
    for name, parameter in named.items():
        if parameter.default is _EMPTY and name not in arguments:
            expected = describe(hints.get(name, Any))
            problems.append(f"`{prefix}{name}` is missing; expected {expected}.")
    return problems


def keyword_only(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters after the `*`, or of a final `**name: Unpack[...]`."""
    return [n for n, p in parameters_of(function).items() if p.kind is p.KEYWORD_ONLY]


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


def _violations(key: str, value: Any, annotation: Any) -> Iterator[str]:
    """Yield a sentence for a value, or for each value of a mapping, that is out of range.

    The values of a mapping of anything are left to the reader of that section.
    """
    if isinstance(value, Mapping):
        inner = get_args(annotation)
        if get_origin(annotation) is not typing.Annotated:
            annotation = inner[1] if len(inner) == 2 else Any
        if annotation is Any:
            return
        for name, item in value.items():
            yield from _violations(f"{key}.{name}", item, annotation)
    elif isinstance(limit := violated(value, annotation), Choice):
        yield f"`{key}={_show(value)}` is not a choice of {key}; {nearest(value, limit.names)}"
    elif limit:
        yield f"`{key}={_show(value)}` is not possible; it must be {limit}."


def violated(value: Any, annotation: Any) -> Range | Form | Choice | None:
    """Return the limit that a value, or an item of it, breaks; None if all are kept.

    Numbers without a range must be finite, and whole numbers must be exact as a float.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        for limit in inner[1:]:
            numbers = value if isinstance(value, list | tuple) else [value]
            if isinstance(limit, Form | Choice) and value not in limit:
                return limit
            if isinstance(limit, Range) and not all(number in limit for number in numbers):
                return limit
        return violated(value, inner[0])
    if origin in (Union, types.UnionType):
        limits = [violated(value, option) for option in inner if matches(value, option)]
        return None if None in limits else next(iter(limits), None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        fixed = origin is tuple and inner[1:] != (...,)
        kinds = inner if fixed else (inner[0] if inner else None,) * len(value)
        broken = (violated(item, kind) for item, kind in zip(value, kinds, strict=False))
        return next((limit for limit in broken if limit is not None), None)
    if isinstance(value, float) and value not in FINITE:
        return FINITE
    if isinstance(value, int) and abs(value) > _LARGEST:
        return Range(-_LARGEST, _LARGEST)
    return None


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
    """Describe an annotation in the words of a YAML author, e.g. `a number or null`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return describe(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(option) for option in inner))
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
            items = [describe(item) for item in inner if item is not ...]
            return f"a list ({', '.join(dict.fromkeys(items))})" if items else "a list"
        return f"a {kind.__name__}"
    return "any value"


@cache
def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function; `**name: Unpack[...]` counts as its keys, of which those
    that are not required have a default.
    """
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("self", None)
    for name, parameter in list(parameters.items()):
        hint = hints_of(function).get(name)
        if parameter.kind is parameter.VAR_KEYWORD and get_origin(hint) is typing.Unpack:
            del parameters[name]
            (keys,) = get_args(hint)
            kind = inspect.Parameter.KEYWORD_ONLY
            for key in keys.__annotations__:
                default = None if key in keys.__optional_keys__ else _EMPTY
                parameters[key] = inspect.Parameter(key, kind, default=default)
    return parameters


@cache
def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotation of each parameter, without those imported for type checkers only."""
    target = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):
        names = getattr(target, "__globals__", {})
        return {
            name: hint
            for name, text in getattr(target, "__annotations__", {}).items()
            if (hint := _evaluated(text, names)) is not None
        }


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["it"]
    except (NameError, TypeError):
        return None


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return shorten(text, 60)
