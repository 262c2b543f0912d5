"""The benchmark that a test file is about, on the tiny official files that the test file writes."""

import pytest

from dpn.benchmarks import build


@pytest.fixture
def benchmark(request, tmp_path):
    """Of what `make` writes."""
    request.module.make(tmp_path)
    return build(name_of(request.module), root=tmp_path)


@pytest.fixture
def val(request, tmp_path):
    """Its `split=val`, of what `make_val` writes."""
    request.module.make_val(tmp_path)
    return build(name_of(request.module), root=tmp_path, split="val")


def name_of(module):
    """`gqa` of `test_gqa`."""
    return module.__name__.rpartition(".test_")[2]
