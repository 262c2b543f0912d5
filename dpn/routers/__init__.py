"""Methods that reduce visual tokens inside the decoder: one router, one file.

Imports `common`, `tokens` and `cost`, but not the decoder or the model.
"""

from collections.abc import Mapping
from typing import Any

from dpn.common.registry import Registry
from dpn.common.schema import keyword_only
from dpn.routers._dropping import DroppingRouter, last_instruction_rows, mean_attention
from dpn.routers._gates import Gate, MLPGate
from dpn.routers._pooling import PoolingRouter
from dpn.routers._pooling_plan import Grids, count_rows
from dpn.routers.base import Router, RoutingContext
from dpn.tokens import Decision, Trace

_registry = Registry("dpn.routers", Router)
names, resolve = _registry.names, _registry.resolve


def build(name: str, **arguments: Any) -> Router:
    """Return a router, see `Registry.build`; `blocks` is left out if its class does not take it."""
    if "blocks" in arguments and "blocks" not in keyword_only(resolve(name)):
        del arguments["blocks"]
    return _registry.build(name, **arguments)


def inline_files(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a router's config section with files replaced by their contents.

    See `Router.inline_files`.
    """
    arguments = {key: value for key, value in section.items() if key != "name"}
    return {"name": section["name"], **resolve(section["name"]).inline_files(arguments)}


__all__ = [
    "Decision",
    "DroppingRouter",
    "Gate",
    "Grids",
    "MLPGate",
    "PoolingRouter",
    "Router",
    "RoutingContext",
    "Trace",
    "build",
    "count_rows",
    "inline_files",
    "last_instruction_rows",
    "mean_attention",
    "names",
    "resolve",
]
