"""What all tests share."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors gain nothing from threads, and threads of a busy machine wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _choices_are_merged_once():
    """Hydra finds, reads and merges twenty files anew for each config, which takes nine tenths of
    the time of composing; of the hundreds that the tests compose, most differ in values alone.
    """
    load, choose = ConfigRepository.load_config, config_loader_impl.create_defaults_list
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    loaded, chosen, merged = {}, {}, {}

    def places(repo):
        return tuple(source.path for source in repo.get_sources())

    def load_once(self, config_path):
        key = (config_path, *places(self))
        if key not in loaded:
            loaded[key] = load(self, config_path)
        return copy.deepcopy(loaded[key])

    def choose_once(repo, config_name, overrides_list, **options):
        given = [override for override in overrides_list if not override.is_sweep_override()]
        choices = [o for o in given if repo.group_exists(o.key_or_group)]
        choices = [o for o in choices if not isinstance(o.value(), dict)]
        key = (config_name, *places(repo), *(o.input_line for o in choices), *options.items())
        if key not in chosen:
            chosen[key] = choose(repo, config_name, choices, **options)
        return replace(chosen[key], config_overrides=[o for o in given if o not in choices])

    def merge_once(self, defaults, repo):
        key = (places(repo), *((d.config_path, d.package, d.primary) for d in defaults))
        if key not in merged:
            merged[key] = merge(self, defaults, repo)
        return copy.deepcopy(merged[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_once)
        patch.setattr(config_loader_impl, "create_defaults_list", choose_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
        yield


def pytest_collection_finish():
    """The objects of imported libraries stay; looking through them again and again takes a tenth of
    the time of the tests.
    """
    gc.collect()
    gc.freeze()
