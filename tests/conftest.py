"""What all tests share."""

import gc

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors gain nothing from threads, and threads of a busy machine wait for each other."""
    torch.set_num_threads(1)


def pytest_collection_finish():
    """The objects of imported libraries stay; looking through them again and again takes a tenth of
    the time of the tests.
    """
    gc.collect()
    gc.freeze()
