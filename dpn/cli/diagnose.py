"""Explain the names in a command line that Hydra refused; nothing heavy is imported for it."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from dpn.common.schema import nearest
from dpn.common.text import one_line
from dpn.config.compose import CONFIG_DIR, MULTIRUN, compose_names
from dpn.config.renamed import KEYS


def diagnose(
    config_name: str, arguments: Sequence[str], raised: HydraException | None = None
) -> list[str]:
    """Return one sentence for every name of a command line that Hydra does not know.

    Args:
        config_name: Name of the config.
        arguments: Command line.
        raised: What Hydra raised for it, if known; composing again would take half a second.
    """
    overrides = [a for a in arguments if not a.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        if "=" not in str(error.override):
            return [f"`{error.override}` is not of the form key=value; see --help."]
        return [
            f"`{error.override}` cannot be read as key=value; put quotes around a value with"
            f" special characters: '{_quoted(error.override)}'."
        ]
    # Swept values are checked one by one: `router=static,dpee` has one bad choice.
    singles = [
        [f"{p.get_key_element()}={v}" for v in p.sweep_string_iterator()]
        if p.is_discrete_sweep()
        else [str(p.input_line)]
        for p in parsed
    ]
    base = [choices[0] for choices in singles]
    several = [str(p.input_line) for p in parsed if p.is_sweep_override()]
    if several and not {"-m", "--multirun", MULTIRUN} & {*arguments}:
        return [
            f"`{override}` holds several values; add -m to run each of them, or write a list as"
            " key=[1,2] and text with a comma as key='\"1,2\"'."
            for override in several
        ]
    if several:
        raised = None  # it belongs to one of the jobs
    jobs = [
        [*base[:i], c, *base[i + 1 :]] for i, choices in enumerate(singles) for c in choices[1:]
    ]
    found = [_diagnose_job(config_name, base, raised)]
    found += [_diagnose_job(config_name, job) for job in jobs]
    return list(dict.fromkeys(sentence for sentences in found for sentence in sentences))


def _diagnose_job(
    config_name: str, overrides: list[str], known: HydraException | None = None
) -> list[str]:
    problems: list[str] = []
    unknown: list[str] = []
    while True:
        try:
            if known is not None:
                raise known
            config = compose_names(config_name, overrides)
            break
        except HydraException as error:
            known, bad = None, _culprit(error, overrides)
            if bad is None:
                return [*problems, _not_installed(error) or str(error)]
            overrides = [o for o in overrides if o != bad]
            if isinstance(error, MissingConfigException):
                group, _, choice = bad.partition("=")
                problems.append(
                    _not_installed(error)
                    or f"`{bad}` is not a choice of {group}; {nearest(choice, error.options or ())}"
                )
            elif str(error).startswith("Could not override"):
                unknown.append(bad)
            else:
                reason = one_line(str(error.__cause__ or error))
                problems.append(f"`{bad}` does not fit: {reason}")
    for override in unknown:
        key = re.split(r"[=@]", override.lstrip("+~"))[0]
        if key in KEYS:
            problems.append(f"`{key}` is now called `{KEYS[key]}`; use that.")
        else:
            hint = nearest(key, _keys(config), listing="--cfg job")
            section = key.rpartition(".")[0]
            if section and "_target_" in (OmegaConf.select(config, section) or ()):
                hint += f" A further argument of its class is added by +{key}=..."
            problems.append(f"`{key}` is not a setting; {hint}")
    return problems


def _not_installed(error: HydraException) -> str | None:
    """Return a sentence if a plugin of Hydra that a config names is not installed."""
    place, _, choice = str(getattr(error, "missing_cfg_file", None)).rpartition("/")
    extra = {"submitit_slurm": "slurm", "optuna": "optuna", "ray": "ray"}.get(choice)
    if not place.startswith("hydra/") or extra is None:
        return None
    return f"`{place}={choice}` is not installed; install it: pip install 'dpn[{extra}]'."


def _culprit(error: HydraException, overrides: Sequence[str]) -> str | None:
    """Return the override that caused an error of Hydra, if it can be found."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        wanted = [o for o in overrides if o.lstrip("+") == f"{group}={choice}"]
    else:
        wanted = [
            o
            for o in overrides
            if f"'{re.split('=', o.lstrip('+~'))[0]}'" in str(error) or o in str(error)
        ]
    return max(wanted, key=len, default=None)


def _keys(config: DictConfig) -> list[str]:
    """Return all dotted keys of a config, and its groups."""

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        keys = [f"{prefix}{key}" for key in node]
        return keys + [k for key in node for k in walk(node[key], f"{prefix}{key}.")]

    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]
    node = OmegaConf.to_container(config, resolve=False)
    assert isinstance(node, dict)
    return sorted({*walk(node | {"hydra": None}, ""), *groups})


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    return f'{key}="{value}"'
