"""Data sets, from files to batches: a source names the files, and all sources share the rest.

Imports `common` and `metrics`.
"""

from typing import TYPE_CHECKING, Any

from dpn.common.registry import Registry
from dpn.data.batch import Batch, DataError, Sample, collate
from dpn.data.sources.base import Source, Split

if TYPE_CHECKING:
    from dpn.data.module import DataModule

_registry = Registry("dpn.data.sources", Source, group="dpn.data")
names, resolve = _registry.names, _registry.resolve


def build(name: str, *, processor: Any = None, **arguments: Any) -> "DataModule":
    """Build the data module of a source; `resolve(name)` has the arguments' schema.

    Args:
        name: File name in `dpn/data/sources`, or a third party's entry point.
        processor: A `DPNProcessor`; may be set later, before the first loader.
        arguments: Settings of the source.
    """
    from dpn.data.module import DataModule

    return DataModule(resolve(name)(**arguments), processor)


__all__ = [
    "Batch",
    "DataError",
    "Sample",
    "Source",
    "Split",
    "build",
    "collate",
    "names",
    "resolve",
]
