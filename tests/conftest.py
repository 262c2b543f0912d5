"""What all tests share."""

import copy
import gc

import pytest
import torch
from hydra._internal.config_repository import ConfigRepository


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors gain nothing from threads, and threads of a busy machine wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _yaml_is_read_once():
    """Hydra reads twenty files anew for each config, which takes a third of the time of composing;
    the tests compose hundreds.
    """
    load, known = ConfigRepository.load_config, {}

    def load_once(self, config_path):
        key = (config_path, *(source.path for source in self.sources))
        if key not in known:
            known[key] = load(self, config_path)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_once)
        yield


def pytest_collection_finish():
    """The objects of imported libraries stay; looking through them again and again takes a tenth of
    the time of the tests.
    """
    gc.collect()
    gc.freeze()
