"""Fixtures for the benchmark of a test file, on the tiny official files that it writes."""

import pytest

from dpn.benchmarks import build


@pytest.fixture
def benchmark(request, tmp_path):
    """Benchmark on the files that `make` writes."""
    request.module.make(tmp_path)
    return build(name_of(request.module), root=tmp_path)


@pytest.fixture
def val(request, tmp_path):
    """Benchmark with `split=val` on the files that `make_val` writes."""
    request.module.make_val(tmp_path)
    return build(name_of(request.module), root=tmp_path, split="val")


def name_of(module):
    """`gqa` of `test_gqa`."""
    return module.__name__.rpartition(".test_")[2]
