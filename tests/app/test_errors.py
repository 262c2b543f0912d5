"""Errors that a user can mend derive from `DPNError`, so that commands print one sentence."""

import ast
import logging
from pathlib import Path

import pytest

import dpn
from dpn import benchmarks, losses, projectors, routers, vision
from dpn.checkpoints.containers import damaged
from dpn.cli.door import set_up_logging
from dpn.cli.errors import readable_errors
from dpn.common.errors import DPNError, FileError, SettingError
from dpn.runs.request import ConfigError

PACKAGE = Path(dpn.__file__).parent
#: Folders in which bare built-in errors may only be raised where a program uses them wrongly.
FOLDERS = [
    *("cli", "config", "cost", "vision", "projectors", "routers", "losses", "decoder", "tokens"),
    *("benchmarks", "checkpoints", "integrations", "measure"),
]
MISTAKES_OF_PROGRAMS = {
    "routers/base.py": "attention scores outside of the layer loop",
    "decoder/cache.py": "a cache cropped by assisted decoding",
    "decoder/loop.py": "a model whose attention implementation was changed",
    "projectors/_reduction.py": "features without an ImageContext",
    "tokens/packed.py": "targets and masks that do not fit together",
    "checkpoints/keys.py": "names of weights",
    "integrations/lmms_eval.py": "requests of lmms-eval that are not implemented",
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_errors_about_settings_and_files_are_sentences(folder):
    bare = {"ValueError", "KeyError", "RuntimeError", "NotImplementedError"}
    for path in (PACKAGE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            made = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
            if made and getattr(node.exc.func, "id", None) in bare:
                place = str(path.relative_to(PACKAGE))
                assert place in MISTAKES_OF_PROGRAMS, f"{place}:{node.lineno}"


@pytest.mark.parametrize("registry", [benchmarks, losses, projectors, routers, vision])
def test_unknown_names(registry):
    with pytest.raises(SettingError, match=r"There is no .* named 'nothing'; there is"):
        registry.resolve("nothing")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["`a` is wrong."]), 2),
        (SettingError("There is no router named x."), 1),
        (damaged(Path("model.safetensors"), "header too large"), 1),
        (FileError("config.yaml is damaged."), 1),
        (DPNError("Something."), 1),
        (FileNotFoundError("run=x holds no model."), 1),
    ],
)
def test_commands_print_them_without_a_traceback(error, code, capsys):
    with pytest.raises(SystemExit) as ended, readable_errors():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == f"{error}\n"


def test_bugs_keep_their_traceback():
    with pytest.raises(ValueError, match="a bug"), readable_errors():
        raise ValueError("a bug")


def test_news_of_deepspeed_that_are_none_are_not_printed():
    set_up_logging()
    logger = logging.getLogger("DeepSpeed")
    lines = ["Setting accelerator to CPU. If you have GPU", "The checkpoint is damaged."]
    records = [logger.makeRecord("DeepSpeed", 30, "f", 1, line, (), None) for line in lines]
    assert [bool(logger.filter(record)) for record in records] == [False, True]
