"""Files to batches: a source says which files, everything after it is shared."""

from typing import TYPE_CHECKING, Any

from dpn.common.registry import Registry
from dpn.data.base import Source
from dpn.data.batch import Batch, DataError, Sample, collate

if TYPE_CHECKING:
    from dpn.data.module import DataModule


class _Sources(Registry):
    """Sources share their folder with the steps that follow them."""

    steps = frozenset(
        {
            *("batch", "chat_template", "conversation", "encoding", "grouping", "images"),
            *("index", "module", "row_budget", "rows", "sampler", "tokenizer"),
        }
    )

    def names(self) -> list[str]:
        return [name for name in super().names() if name not in self.steps]


_registry = _Sources("dpn.data", Source)
names, resolve = _registry.names, _registry.resolve


def build(name: str, *, processor: Any = None, **arguments: Any) -> "DataModule":
    """The data module of a source; `resolve(name)` has the arguments' schema.

    Args:
        name: file name in this folder.
        processor: a `DPNProcessor`; may be set later, before the first loader.
        arguments: of the source.
    """
    from dpn.data.module import DataModule

    return DataModule(resolve(name)(**arguments), processor)


__all__ = ["Batch", "DataError", "Sample", "Source", "build", "collate", "names", "resolve"]
