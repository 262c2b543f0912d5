import copy
import functools
import importlib
import math
import subprocess
import sys
from itertools import chain, zip_longest
from typing import Unpack

import pytest
import torch
from omegaconf import OmegaConf, open_dict

from dpn import chat, generate, losses, projectors, route, routers
from dpn.cli.arguments import read_arguments
from dpn.cli.diagnose import diagnose
from dpn.cli.help import help_of_config
from dpn.common.errors import SettingError
from dpn.common.method_files import method_defaults, method_names
from dpn.common.schema import check_arguments, keyword_only, matches
from dpn.config import preflight, renamed, targets
from dpn.config.compose import CONFIG_DIR, compose
from dpn.cost import TextShape
from dpn.routers.base import RouterSizes
from dpn.runs.path import config_hash
from dpn.runs.request import ConfigError
from dpn.tokens import Grid

GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONFIG_DIR.iterdir())
    if folder.is_dir() and folder.name not in ("hydra", "suite", "sweep")
}
#: Groups whose choices are independent of each other: a test takes one choice of each.
INDEPENDENT = (
    ("callbacks", "data", "init", "logger", "optim", "paths", "router", "stage", "trainer"),
    ("projector", "recipe"),
)
SINGLE = [(group,) for group in GROUPS if group not in chain.from_iterable(INDEPENDENT)]
GROUPS["model"].remove("hf")  # of dpn.verify only
CHOICES = [
    [(group, name) for group, name in zip(groups, names, strict=True) if name]
    for groups in (*INDEPENDENT, *SINGLE)
    for names in zip_longest(*(GROUPS[group] for group in groups))
]


def further(group, choice):
    """Overrides that a choice needs beside it."""
    if (group, choice) == ("stage", "apply"):
        return ["init.model=gpt2"]
    if group == "model" and choice not in GROUPS["recipe"]:
        return ["recipe=tiny"]
    if group == "projector":  # without a grid the default keep is out of the router's reach
        return ["router=none"]
    if group == "loss" and choice not in ("auto", "language"):
        able = preflight.trainable_by(choice)
        keep = ["router.keep=0.6"] if losses.resolve(choice).needs_keep else []
        return ["router=" + ("dpe" if "dpe" in able else able[0]), *keep]
    return []


def problems(*overrides: str, sweep: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        preflight.check(compose("train", [*overrides, *(["hydra.mode=MULTIRUN"] if sweep else [])]))
    return list(caught.value.problems)


def test_default_config_passes():
    preflight.check(compose("train"))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Folder with the files of LLaVA's data sets, where their configs expect them."""
    root = tmp_path_factory.mktemp("data")
    (root / "LLaVA-Pretrain" / "images").mkdir(parents=True)
    for name in ("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "llava_v1_5_mix665k.json"):
        (root / name).write_text("[]")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(sum(choices, ())))
def test_every_choice_composes_and_passes(choices, data_root):
    overrides = [f"paths.data_root={data_root}"]
    for group, choice in choices:
        overrides += [f"{group}={choice}", *further(group, choice)]
    request = compose("train", overrides)
    allowed = (
        "give model.weights.",
        "give init.model=",
        "needs a GPU",
        "`optim=muon` needs whole matrices",
        "`python tools/search.py run=RUN router=head_pruning` and give router.scores",
    )
    assert [p for p in problems_of(request) if not any(hint in p for hint in allowed)] == []


def problems_of(request):
    try:
        preflight.check(request)
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize("group", [*GROUPS, "suite", "sweep"])
def test_every_yaml_opens_with_the_command_that_uses_it(group):
    for path in (CONFIG_DIR / group).rglob("*.yaml"):
        lines = path.read_text().splitlines()
        head = [line for line in lines[:4] if line.startswith("#") and "@package" not in line]
        assert any("python -m dpn." in line for line in head), path


MISTAKES = {
    "unknown keys": {
        "+router.kep=0.5": "`router.kep` is not a setting; did you mean `keep`?",
        "+colour=1": "`colour` is not a setting",
        "+optim.weight_dec=1": "`optim.weight_dec` is not a setting; did you mean `weight_decay`?",
        "+optim.warmups=0.1": "`optim.warmups` is not a setting; did you mean `warmup`?",
        "+trainer.max_step=3": "`trainer.max_step` is not a setting; did you mean `max_steps`?",
        "+callbacks.checkpoint.kep=3": "`callbacks.checkpoint.kep` is not a setting; did you mean",
        "+model.text.num_layers=3": "`model.text.num_layers` is not a setting",
        "+model.vision.dept=3": "`model.vision.dept` is not a setting; did you mean `depth`?",
    },
    "wrong types": {
        "optim.lr=fast": "`optim.lr=fast` has the wrong type; expected a number",
        "trainer.max_steps=2.5": "`trainer.max_steps=2.5` has the wrong type; expected a whole",
        "router.reduce=mean": "`router.reduce=mean` has the wrong type; expected one of",
        "router.kernels=3": "`router.kernels=3` has the wrong type; expected a list",
        "seed=abc": "`seed=abc` has the wrong type",
        "stage.freeze=[visoin]": "`stage.freeze=['visoin']` has the wrong type",
    },
    "unknown names and missing files": {
        "router.name=dpee": "`router.name=dpee` is unknown; did you mean `dpe`?",
        "trainer._target_=torch.optim.No": "`_target_=torch.optim.No` cannot be imported",
        "init.model=/no/where": "`init.model=/no/where` does not exist",
    },
    "values out of range": {
        "stage.dense=1": "`stage.dense=1` is not possible; it must be at least 0 and less than 1.",
        "optim.lr=-1": "`optim.lr=-1` is not possible; it must be at least 0.",
        "optim.betas=[0.9,1.5]": "`optim.betas=[0.9, 1.5]` is not possible",
        "trainer.max_steps=0": "it must be at least 1, or -1 for no limit.",
        "trainer.devices=two": "it must be auto, a number, or a list of indices.",
        "data.batch_size=0": "`data.batch_size=0` is not possible; it must be at least 1.",
        "model.text.num_hidden_layers=99999999999999999999": "it must be at least 1 and at most",
        "+model.text.attention_dropout=1": "`model.text.attention_dropout=1` is not possible",
        "callbacks.checkpoint.keep=0": "`callbacks.checkpoint.keep=0` is not possible",
        "seed=-1": "`seed=-1` is not possible",
    },
    "what only the optimizer itself refuses": {
        "optim=sgd": "SGD refuses its arguments: Nesterov momentum requires a momentum",
        "optim.momentum=0": "",
        "+optim.nesterov=true": "",
    },
    "references to nothing": {"optim.lr=${other_lr}": "`optim.lr` cannot be resolved: Interpol"},
    "unset variables": {"seed=${oc.env:DPN_NOT_SET}": "Environment variable 'DPN_NOT_SET' not"},
    "sections that are no mappings": {
        "model.text=5": "`model.text=5` has the wrong type; expected a mapping.",
        "model.generation=null": "`model.generation=null` has the wrong type",
        "stage.lora=5": "`stage.lora=5` has the wrong type",
        "~data": "`data` is missing; expected a mapping.",
    },
    "weights that are no names": {
        "+model.weights.language=[[]]": "`model.weights.language=[[]]` has the wrong type",
        "init.vision=[1]": "`init.vision=[1]` has the wrong type; expected a string or null.",
    },
    "weights that are no mapping": {"model.weights=x": "`model.weights=x` has the wrong type"},
    "a name that cannot be on the Hub": {"init.model=../x": "`init.model=../x` does not exist"},
    "groups without a choice": {
        "logger=null": "`logger=null` is not a choice; choose one of `csv`, `none`",
        "trainer=5": "`trainer=5` is not a choice; choose one of `cpu`",
    },
    "settings that nothing reads": {
        "stage.lr=1e-3": "`stage.lr=1e-3` changes nothing: no setting of this composition refers",
        "recipe.max_length=5": "set data.max_length, or remove it.",
        "optim.schedule=cosine": "",
        "optim.decay=0.5": "`optim.decay=0.5` changes nothing: optim.schedule=cosine does not",
    },
    "classes of other packages": {
        "logger.csv._target_=dpn_evil.X": "`logger.csv._target_=dpn_evil.X` is not a class of",
        "+callbacks.x._target_=os.system": "`callbacks.x._target_=os.system` is not a class of",
        "+trainer.profiler=[{_target_: os.system}]": "`trainer.profiler.0._target_=os.system` is",
        "+callbacks.y._target_=dpn.common.files.os.system": "cannot be imported",
        "+callbacks.z._target_=dpn.common.files.Path": "is not a class of its package",
        "+callbacks.n._target_=dpn.common.files.read_json": "name a class",
    },
    "missing file of the data": {
        "data=llava_json": "`data.train_file=data/llava_v1_5_mix665k.json` does not exist",
    },
    "layer beyond the depth": {
        "router.layers=[8]": "names layer 8, the decoder has layers 0 to 7",
    },
    "kernel larger than the grid": {
        "router.kernels=[[1,1],[9,9]]": "[9, 9] at layer 1, where the grid is at most 8 x 8",
    },
    "kernel larger than the tower's grid": {
        "projector=pooled": "",
        "projector.kernel=[9,1]": "projector.kernel=[9, 1] must lie between",
    },
    "keep of zero": {"router.keep=0": "router.keep=0 must be larger than 0 and at most 1"},
    "keep above one": {"router.keep=1.2": "router.keep=1.2 must be larger than 0 and at most 1"},
    "projector's keep above one": {
        "projector=pooled": "",
        "projector.keep=2.0": "projector.keep=2.0 must be",
    },
    "projector without the keep it needs": {
        "projector=random": "",
        "projector.keep=null": "`projector.keep` is null; give it",
    },
    "projector that needs more than the tower gives": {
        "model=llava_hr_tiny": "",
        "projector=visionzip": "which CLIPConvNeXt does not provide; use a model whose vision",
    },
    "image that the tower cannot take": {
        "model=llava_hr_tiny": "",
        "projector=downsample": "projector.keep=0.5 needs smaller images than this vision",
    },
    "keep out of reach": {"router.keep=0.02": "router.keep=0.02 cannot be reached, only 0."},
    "hinge with keep": {"loss=hinge": "`loss=hinge` has its own target", "router.keep=0.6": ""},
    "budget without keep": {
        "loss=budget": "`loss=budget` needs a target, and router.keep is null",
        "router.keep=null": "",
    },
    "budget without gates": {
        "loss=policy": "`loss=policy` trains gates, and router=static has none",
        "router=static": "",
        "router.keep=0.6": "",
    },
    "gates that another router has": {
        "loss=exit": "has none that it can train; use router=dyvte, or loss=auto",
    },
    "gates of no width": {
        "router=dyvte": "",
        "router.hidden=0": "router.hidden=0 must be at least 1",
    },
    "impossible text model": {"model.text.hidden_size=97": "The model cannot be built"},
    "heads that do not fit": {"+model.text.num_key_value_heads=3": "is not a multiple of"},
    "text model that does more than its layers": {
        "model.text.model_type=gemma2": "The text model 'gemma2' is not supported",
    },
    "text model of another kind": {"model.text.model_type=phi": "The text model 'phi' is not"},
    "text model with windows": {"model.text.model_type=mistral": "set sliding_window=null"},
    "text model without end": {
        "model.text.num_hidden_layers=99999999999999999999": "num_hidden_layers=9999",
    },
    "no DeepSpeed for muon": {"trainer=deepspeed_zero3": "`optim=muon` needs whole matrices"},
    "no value": {"router.layers=???": "`router.layers` has no value yet"},
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_each_problem_gets_a_sentence(kind):
    mistakes = MISTAKES[kind]
    found = problems(*mistakes)
    assert len(found) >= sum(map(bool, mistakes.values()))
    for sentence in mistakes.values():
        assert any(sentence in problem for problem in found), sentence


@pytest.mark.slow
@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(sum(choices, ())))
@pytest.mark.parametrize("value", [-3, 10**20, math.nan], ids=str)
def test_every_number_of_every_config_has_a_range(choices, value):
    overrides = []
    for group, choice in choices:
        overrides += [f"{group}={choice}", *further(group, choice)]
    config = OmegaConf.to_container(compose("train", overrides).config, resolve=True)
    before = preflight.all_problems(config)
    for path in numbers(config):
        changed = copy.deepcopy(config)
        *sections, key = path
        functools.reduce(dict.__getitem__, sections, changed)[key] = value
        found = set(preflight.all_problems(changed)) - set(before)
        assert any(key in problem or "cannot be built" in problem for problem in found), path


def numbers(node, path=()):
    """Keys of each number in nested mappings."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from numbers(value, (*path, key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path


def test_a_target_is_refused_before_anything_is_imported(tmp_path, monkeypatch):
    (tmp_path / "dpn_evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("dpn_evil.X", "dpn.common.files.os.system", "os.system", "X", 5, None, "a..b"):
        with pytest.raises(SettingError, match="_target_="):
            targets.resolve(target)
    section = {
        "callbacks": {"x": {"_target_": "os.system"}},
        "launcher": {"_target_": "dpn_evil.X"},
    }
    assert len(targets.refused_of_hydra(section)) == 2
    basic = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    assert targets.refused_of_hydra({"launcher": {"_target_": basic}}) == []


def test_objects_inside_of_objects_are_built():
    checkpoints = {"_target_": "dpn.training.resume.Checkpoints", "dirpath": "x", "keep": 3}
    found = targets.arguments({"_target_": "dpn.X", "plain": {"list": [checkpoints, 1]}})
    assert found["plain"]["list"][0].save_top_k == 3
    assert found["plain"]["list"][1] == 1


def test_a_sweep_only_names_settings_that_nothing_reads(caplog):
    preflight.check(compose("train", ["stage.lr=1e-3", "hydra.mode=MULTIRUN"]))
    assert "`stage.lr=1e-3` changes nothing" in caplog.text


def test_overrides_are_kept_as_they_were_typed(monkeypatch):
    monkeypatch.setenv("DPN_SEED", "3")
    request = compose("train", ["seed=${oc.env:DPN_SEED}", "optim.lr=${.other_lr}"])
    assert request.overrides == ("seed=${oc.env:DPN_SEED}", "optim.lr=${.other_lr}")
    assert request.config.seed == "3" or request.config.seed == 3
    assert request.config.optim.lr == request.config.optim.other_lr


def test_all_problems_come_in_one_error():
    mistakes = ["+data.batchsize=3", "optim.lr=fast", "router.layers=[9]", "init.model=/no/where"]
    mistakes.append("router.keep=null")
    assert len(problems(*mistakes, "loss=budget", "model.vision.depth=deep")) == 5
    assert len(problems(*mistakes, "loss=budget")) == 5  # now the layers can be checked too


def test_several_machines_in_a_sweep():
    (found,) = problems("trainer.num_nodes=2", "seed=3", sweep=True)
    assert "hydra/launcher=slurm" in found
    assert "each job separately: python -m dpn.train trainer.num_nodes=2 seed=3" in found
    preflight.check(compose("train", ["trainer.num_nodes=2"]))


def test_missing_gpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    (found,) = problems("trainer=gpu")
    assert "`trainer.accelerator=gpu` needs a GPU, and PyTorch finds none" in found


def test_hydra_errors_become_sentences_with_the_nearest_name():
    line = ["router=dpee", "routr.keep=0.5", "trainer.max_step=3", "optim.lr=fast", "loss=hinge"]
    found = diagnose("train", line)
    for sentence in (
        "`router=dpee` is not a choice of router; did you mean `dpe`?",
        "`routr.keep` is not a setting; did you mean `router.keep`?",
        "`trainer.max_step` is not a setting; did you mean `trainer.max_steps`?",
    ):
        assert any(sentence in problem for problem in found), sentence


def test_every_swept_value_is_checked():
    found = diagnose("train", ["-m", "router=static,dpee", "loss=auto,hing"])
    assert any("`router=dpee`" in problem for problem in found)
    assert any("`loss=hing`" in problem for problem in found)


def test_an_unknown_setting_names_the_nearest_few_and_how_to_list_all():
    (found,) = diagnose("train", ["run.root=outputs"])
    assert "`run.root` is not a setting; the most similar are " in found
    assert "`paths.data_root`" in found
    assert "with --cfg job" in found
    assert len(found) < 250


def test_unreadable_override():
    (found,) = diagnose("train", ["seed=[1,2"])
    assert "cannot be read as key=value" in found


@pytest.mark.slow
def test_command_line_prints_sentences_only():
    for arguments, sentence in (
        (["rooter=dpe"], "`rooter` is not a setting; did you mean `router`?"),
        (["optim.lr=fast"], "`optim.lr=fast` has the wrong type"),
    ):
        command = [sys.executable, "-m", "dpn.train", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_arguments_of_commands_without_config():
    def ask(run: str, tokens: int = 3, temperature: float = 0.0):
        """A command without a config."""

    assert read_arguments(ask, ["run=1", "tokens=5"]) == {"run": "1", "tokens": 5}
    with pytest.raises(ConfigError) as caught:
        read_arguments(ask, ["tokns=5", "temperature=very", "what"])
    assert len(caught.value.problems) == 4  # no value, unknown, wrong type, missing run


def test_help_of_a_command_without_a_config(capsys):
    with pytest.raises(SystemExit) as ended:
        read_arguments(generate.generate, ["--help"])
    assert ended.value.code is None
    shown = capsys.readouterr().out
    assert 'python -m dpn.generate run=RUN_FOLDER image=mosaic.png prompt="' in shown
    assert "max_new_tokens=64  a whole number, at least 1" in shown
    assert "temperature=0.0    a number, at least 0" in shown
    assert "auto, cpu, cuda or cuda:NUMBER" in shown
    assert "Run folder, or Hugging Face folder" in shown


@pytest.mark.parametrize(
    ("name", "function"),
    [
        *(("train", "train"), ("eval", "evaluate"), ("bench", "bench"), ("plan", "plan")),
        ("verify", "verify"),
    ],
)
def test_help_of_a_command_with_a_config(name, function):
    module = importlib.import_module(f"dpn.{name}")
    shown = help_of_config(getattr(module, function), name, CONFIG_DIR)
    assert f"python -m dpn.{name} " in shown
    assert ("dpe (default)" in shown) == (name not in ("eval", "verify"))
    assert ("hf (default)" in shown and "  pairs: 5  # timed" in shown) == (name == "verify")
    assert ("  seed: 0\n" in shown) == (name != "verify")
    assert ("plan:" in shown) == (name == "plan")
    assert "--cfg job" in shown


def test_arguments_that_are_out_of_range_empty_or_given_twice():
    line = ["run=a", "run=b", "prompt= ", "max_new_tokens=0", "temperature=nan", "device=mps"]
    with pytest.raises(ConfigError) as caught:
        read_arguments(generate.generate, [*line, "seed=1e3", "image"])
    found = caught.value.problems
    for sentence in (
        "`run` is given twice",
        "`prompt=` is empty",
        "`max_new_tokens=0` is not possible; it must be at least 1.",
        "`temperature=nan` is not possible; it must be at least 0.",
        "`device=mps` is not possible; it must be auto, cpu, cuda or cuda:NUMBER.",
        "`seed=1000.0` has the wrong type; expected a whole number.",
        "`image` is not of the form key=value",
    ):
        assert sum(sentence in problem for problem in found) == 1, sentence
    assert len(found) == 7
    ok = read_arguments(generate.generate, ["run=1", "prompt=2", "temperature=1e-3", "seed=5"])
    assert ok == {"run": "1", "prompt": "2", "temperature": 1e-3, "seed": 5}


@pytest.mark.parametrize("door", [generate.generate, route.route, chat.chat])
def test_names_of_methods_are_checked(door):
    line = ["run=1", "prompt=2", "image=3"][: 3 if door is not chat.chat else 1]
    with pytest.raises(ConfigError) as caught:
        read_arguments(door, [*line, "router=fastvv", "projector=visonzip", "keep=50"])
    assert caught.value.problems == (
        "`router=fastvv` is not a choice of router; did you mean `fastv`?",
        "`projector=visonzip` is not a choice of projector; did you mean `visionzip`?",
        "`keep=50` is not possible; it must be larger than 0 and at most 1.",
    )
    found = read_arguments(door, [*line, "router=fastv", "projector=mlp", "keep=0.5"])
    assert (found["router"], found["projector"], found["keep"]) == ("fastv", "mlp", 0.5)


def test_names_of_methods_of_an_evaluation_are_checked():
    assert set(diagnose("eval", ["run=1", "router=fastvv", "projector=visonzip"])) == {
        "`router=fastvv` is not a choice of router; did you mean `fastv`?",
        "`projector=visonzip` is not a choice of projector; did you mean `visionzip`?",
    }


def test_an_evaluation_without_a_method_keeps_its_folder():
    """Earlier versions had no `keep`."""
    config = compose("eval", ["run=1"]).config
    assert config.keep is None
    found = config_hash(config)
    with open_dict(config):
        del config["keep"]
    assert config_hash(config) == found
    for words in (["keep=0.5"], ["router=fastv"], ["projector=pooled"], ["router=none"]):
        assert config_hash(compose("eval", ["run=1", *words]).config) != found


def test_files_and_classes_name_the_same_methods():
    for kind, registry in (("router", routers), ("projector", projectors)):
        assert method_names(kind) == registry.names()
    assert method_defaults("router", "fastv") == (
        {"k": 2, "ratio": 0.5, "positions": "keep", "keep": None},
        set(),
    )
    assert method_defaults("router", "random")[1] == {"min_rows"}
    assert method_defaults("router", "unknown") == ({}, set())


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        *([f"dpn.{name}", "--help"] for name in ("train", "eval", "bench", "plan")),
        *([f"dpn.{name}", "--help"] for name in ("generate", "chat", "route", "report", "verify")),
        ["dpn.train", "router=dpee"],
        ["dpn.verify", "router=fastvv"],
        ["dpn.plan", "optim.lrr=1"],
        ["dpn.generate", "rum=1"],
    ],
)
def test_help_and_misspelt_names_are_answered_before_torch_is_imported(arguments):
    command = [sys.executable, "-X", "importtime", "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "dpn.common.errors" in imported
    assert not imported & {"torch", "transformers", "lightning", "matplotlib", "pyarrow"}
    assert done.returncode == (0 if "--help" in arguments else 2)


def test_types_of_signatures():
    assert matches(1, float)
    assert not matches(True, int)
    assert not matches(1.0, int)
    assert matches([1, 2], tuple[int, int])
    assert not matches([1, 2, 3], tuple[int, int])
    assert matches([1, 2, 3], tuple[int, ...])
    assert not matches(["a"], list[int] | None)
    assert matches(None, list[int] | None)
    assert not matches("a", list[str])
    assert matches({"a": 1}, dict[str, int])
    assert not matches({"a": "b"}, dict[str, int])


def test_arguments_that_the_code_passes_are_not_settings():
    def part(width: int, *, grid: tuple[int, int]):
        """A part whose grid the code passes."""

    arguments = {"width": 1, "grid": [8, 8]}
    assert check_arguments("part", part, arguments) == []
    (found,) = check_arguments("part", part, arguments, given=["grid"])
    assert "`part.grid` is not a setting" in found


def test_what_the_code_gives_may_be_one_typed_dict():
    """As routers and projectors write it; a third party's may still name every keyword."""

    def short(width: int = 1, **sizes: Unpack[RouterSizes]):
        """A part that hands on what the code gives."""

    def long(width: int = 1, *, text: TextShape, grid: Grid):
        """A part that names it."""

    for part, names in ((short, ["text", "grid", "blocks"]), (long, ["text", "grid"])):
        assert keyword_only(part) == names
        sizes = {"text": TextShape(4, 32, 16, 48), "grid": [8, 8]}
        assert check_arguments("part", part, sizes) == []  # blocks are not required
        given = {"given": keyword_only(part)}
        assert check_arguments("part", part, {"width": 2}, **given) == []
        (found,) = check_arguments("part", part, {"widht": 2}, **given)
        assert "`part.widht` is not a setting; did you mean `width`?" in found
        (found,) = check_arguments("part", part, {"grid": [8, 8]}, **given)
        assert "`part.grid` is not a setting" in found


def test_unsupported_attention_and_compilation():
    (found,) = problems("model.attention=varlen")
    assert "`model.attention=varlen` runs only on a GPU in half precision" in found
    found = problems("model.compile_layers=true", "trainer=deepspeed_zero3")
    assert any("compile_layers=true` is not known to work with DeepSpeed" in x for x in found)
    preflight.check(compose("train", ["model.compile_layers=true", "trainer=ddp"]))


def test_names_of_earlier_releases_are_accepted_in_files(caplog):
    config = OmegaConf.create(
        {
            "model": {"batch_size": 3},
            "recipe": {"batch_size": 16},
            "trainer": {"strategy": {"_target_": "dpn.strategies.FSDP2"}},
        }
    )
    renamed.update(config)
    assert config == {
        "model": {},
        "recipe": {"batch_size": 3},
        "trainer": {"strategy": {"_target_": "dpn.training.strategies.FSDP2"}},
    }
    assert "`model.batch_size` is now called `recipe.batch_size`" in caplog.text
    (sentence,) = diagnose("train", ["model.batch_size=3"])
    assert sentence == "`model.batch_size` is now called `recipe.batch_size`; use that."


def test_debug_fast_runs_with_own_data_too(tmp_path):
    (tmp_path / "own.json").write_text("[]")
    files = [f"data.train_file={tmp_path}/own.json", f"data.image_root={tmp_path}"]
    for more in ([], ["data.holdout=5"], [f"data.val_file={tmp_path}/own.json"]):
        request = compose("train", ["debug=fast", "data=llava_json", *files, *more])
        preflight.check(request)
        assert request.config.data.val_rows == 12
    data = compose("train", ["debug=fast"]).config.data
    assert (data.train_images, data.val_images) == (24, 4)
    data = compose("train").config.data
    assert (data.train_images, data.val_images) == (10_000, 100)
