"""Overrides: a config that passes its check can be built."""

import logging

import pytest
import torch
from hydra.errors import HydraException

from dpn.cli.diagnose import diagnose
from dpn.config import build, preflight
from dpn.config.compose import CONFIG_DIR, compose
from dpn.runs.request import ConfigError
from tests.fuzz.mutation import ODD
from tests.talkers import make_talker

pytestmark = pytest.mark.slow

GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONFIG_DIR.iterdir())
    if folder.is_dir() and folder.name not in ("hydra", "suite", "sweep", "paths")
}


def _keys(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def keys():
    return [key for key in _keys(build.plain(compose("train").config)) if "paths" not in key]


def _written(value):
    """A value as somebody may type it."""
    return {True: "true", False: "false", None: "null"}.get(value, str(value)[:400])


def _overrides(rng, keys):
    made = ["init=random"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        group = rng.choice(sorted(GROUPS))
        kind = rng.randrange(4)
        if kind == 0:
            made.append(f"{group}={rng.choice(GROUPS[group])}")
        else:
            odd = rng.choice(ODD)
            text = _written(odd) if isinstance(odd, str | int | float | None) else str(odd)
            made.append(f"{'+' if kind == 1 else ''}{rng.choice(keys)}={text}")
    return made


def test_overrides(fuzz, keys):
    """Hydra's own refusals become sentences; what passes is built on the meta device."""
    processor = make_talker()[1]
    logging.disable()

    def attempt(rng):
        overrides = _overrides(rng, keys)
        try:
            request = compose("train", overrides)
        except HydraException as error:
            problems = diagnose("train", overrides, error)
            assert problems
            raise ConfigError(problems) from None
        preflight.check(request)
        with torch.device("meta"):
            build.module(request.config, build.model(request.config, processor))

    try:
        fuzz.run(attempt)
    finally:
        logging.disable(logging.NOTSET)
