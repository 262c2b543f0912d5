"""The fixture of all fuzz tests."""

import pytest

from tests.fuzz.outcomes import Fuzz


@pytest.fixture
def fuzz(request):
    """Tries of the target that the test is named after."""
    seconds, seed, only = (
        request.config.getoption(name) for name in ("fuzz_seconds", "fuzz_seed", "fuzz_only")
    )
    made = Fuzz(request.node.name.removeprefix("test_"), seconds, seed, only)
    yield made
    request.node.user_properties.append(("fuzz", dict(made.outcomes)))
