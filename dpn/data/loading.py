"""A `DataLoader` whose workers report a bad row as the sentence that describes it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from dpn.common.errors import DPNError


class SampleLoader(DataLoader[Any]):
    """`DataLoader` that raises a dataset's `DPNError` itself, also from a worker process.

    PyTorch would raise a new error whose message is the worker's traceback. Here workers return
    such an error in place of the batch.

    Args:
        dataset: Dataset with a length.
        collate_fn: Conversion of a list of samples to a batch.
        options: Further arguments of `DataLoader`.
    """

    def __init__(
        self, dataset: Dataset[Any], collate_fn: Callable[[list[Any]], Any], **options: Any
    ):
        collate = partial(_collate, collate_fn)
        super().__init__(ErrorsAsItems(dataset), collate_fn=collate, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DPNError):
                try:
                    raise batch
                finally:  # a frame of the error that holds the error would keep the workers alive
                    del batch
            yield batch


class ErrorsAsItems(Dataset[Any]):
    """Dataset that returns a `DPNError` of another dataset as the item.

    Attributes:
        dataset: The other dataset.
    """

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except DPNError as error:
            return error


def _collate(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    errors = (sample for sample in samples if isinstance(sample, DPNError))
    return next(errors, None) or collate(samples)
