"""What all tests share: one thread, configs that are merged once, and options of the fuzz tests."""

import copy
import functools
import gc
import pickle
from collections import Counter
from dataclasses import replace

import pytest

FUZZED = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_addoption(parser):
    """Options of tests/fuzz: an hour is `--fuzz-seconds=3600`."""
    group = parser.getgroup("fuzz")
    group.addoption("--fuzz-seconds", type=float, default=10, help="time for each target")
    group.addoption("--fuzz-seed", type=int, default=0, help="seed of the inputs")
    group.addoption("--fuzz-only", type=int, help="number of the only try, to repeat a failure")


def pytest_configure(config):
    """Collect the outcomes of fuzz tests, which may run in other processes."""
    config.stash[FUZZED] = {}

    class Collector:
        def pytest_runtest_logreport(self, report):
            outcomes = dict(report.user_properties).get("fuzz")
            if outcomes:
                config.stash[FUZZED][report.nodeid.rpartition("::test_")[2]] = Counter(outcomes)

    config.pluginmanager.register(Collector())


def pytest_terminal_summary(terminalreporter, config):
    """Print how often each fuzz target was tried, and how the tries ended."""
    if config.stash[FUZZED]:
        terminalreporter.section("fuzz")
    for name, outcomes in sorted(config.stash[FUZZED].items()):
        ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        terminalreporter.line(f"{name}: {outcomes.total()} tries ({ended})")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors gain nothing from threads, and threads of a busy machine wait for each other."""
    import torch  # here, since the process that hands out the tests needs none of it

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _choices_are_merged_once():
    """Hydra finds, reads and merges twenty files anew for each config, which takes nine tenths of
    the time of composing; of the hundreds that the tests compose, most differ in values alone.
    """
    import omegaconf
    from hydra._internal import config_loader_impl, defaults_list
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.override_parser.overrides_parser import OverridesParser

    load, load_single = ConfigRepository.load_config, ConfigLoaderImpl._load_single_config
    choose = config_loader_impl.create_defaults_list
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    parse, interpolate = OverridesParser.parse_rule, defaults_list._create_interpolation_map
    loaded, placed, chosen, merged, parsed = {}, {}, {}, {}, {}

    def places(repo):
        return tuple(source.path for source in repo.get_sources())

    def load_once(self, config_path):
        """Return a file that nobody may change: `place_once` copies it before it is merged."""
        key = (config_path, *places(self))
        if key not in loaded:
            loaded[key] = load(self, config_path)
        return loaded[key]

    def place_once(self, default, repo):
        key = (default.config_path, default.package, default.primary, *places(repo))
        if key not in placed:
            placed[key] = pickle.dumps(load_single(self, default, repo))
        return pickle.loads(placed[key])

    def choose_once(repo, config_name, overrides_list, **options):
        given = [override for override in overrides_list if not override.is_sweep_override()]
        choices = [o for o in given if repo.group_exists(o.key_or_group)]
        choices = [o for o in choices if not isinstance(o.value(), dict)]
        key = (config_name, *places(repo), *(o.input_line for o in choices), *options.items())
        if key not in chosen:
            chosen[key] = choose(repo, config_name, choices, **options)
        return replace(chosen[key], config_overrides=[o for o in given if o not in choices])

    def interpolate_if_needed(overrides, defaults, self_added):
        needed = any(default.is_interpolation() for default in defaults)
        return interpolate(overrides, defaults, self_added) if needed else None

    def merge_once(self, defaults, repo):
        key = (places(repo), *((d.config_path, d.package, d.primary) for d in defaults))
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(merged[key])  # five times as fast as a deep copy

    def parse_once(self, line, rule):
        if (line, rule) not in parsed:
            parsed[line, rule] = parse(self, line, rule)
        return copy.copy(parsed[line, rule])

    read_once = functools.lru_cache(None)(omegaconf.grammar_parser.parse)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omegaconf.base, "parse", read_once)
        patch.setattr(omegaconf._utils, "parse", read_once)
        patch.setattr(ConfigRepository, "load_config", load_once)
        patch.setattr(ConfigRepository, "__deepcopy__", lambda s, memo: copy.copy(s), raising=False)
        patch.setattr(ConfigLoaderImpl, "_load_single_config", place_once)
        patch.setattr(config_loader_impl, "create_defaults_list", choose_once)
        patch.setattr(defaults_list, "_create_interpolation_map", interpolate_if_needed)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
        patch.setattr(OverridesParser, "parse_rule", parse_once)
        yield


def pytest_collection_finish():
    """Looking for objects that nobody can reach takes a tenth of the time of the tests: imported
    libraries stay, and a test leaves so little behind that looking rarely is enough.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
