import subprocess
import sys
from itertools import chain, zip_longest
from typing import Unpack

import pytest
import torch
from omegaconf import OmegaConf

from dpn import losses
from dpn.cli.arguments import read_arguments
from dpn.cli.diagnose import diagnose
from dpn.config import preflight, renamed
from dpn.config.compose import CONFIG_DIR, compose
from dpn.config.schema import check_arguments, keyword_only, matches
from dpn.cost import TextShape
from dpn.routers.base import RouterSizes
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
    request = compose("train", [*overrides, *(["hydra.mode=MULTIRUN"] if sweep else [])])
    with pytest.raises(ConfigError) as caught:
        preflight.check(request)
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
        "trainer._target_=torch.No": "`trainer._target_=torch.No` cannot be imported",
        "init.model=/no/where": "`init.model=/no/where` does not exist",
    },
    "values out of range": {
        "stage.dense=1": "`stage.dense=1` is not possible",
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
    found = diagnose("train", line, preflight.check)
    for sentence in (
        "`router=dpee` is not a choice of router; did you mean `dpe`?",
        "`routr.keep` is not a setting; did you mean `router.keep`?",
        "`trainer.max_step` is not a setting; did you mean `trainer.max_steps`?",
        "`optim.lr=fast` has the wrong type",
    ):
        assert any(sentence in problem for problem in found), sentence


def test_every_swept_value_is_checked():
    found = diagnose("train", ["-m", "router=static,dpee", "seed=1,x"], preflight.check)
    assert any("`router=dpee`" in problem for problem in found)
    assert any("`seed=x`" in problem for problem in found)


def test_unreadable_override():
    (found,) = diagnose("train", ["seed=[1,2"], preflight.check)
    assert "cannot be read as key=value" in found


@pytest.mark.slow
def test_command_line_prints_sentences_only():
    command = [sys.executable, "-m", "dpn.train", "rooter=dpe", "optim.lr=fast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "`rooter` is not a setting; did you mean `router`?" in done.stderr
    assert "`optim.lr=fast` has the wrong type" in done.stderr
    assert "Traceback" not in done.stderr


def test_arguments_of_commands_without_config():
    def ask(run: str, tokens: int = 3, temperature: float = 0.0):
        """A command without a config."""

    assert read_arguments(ask, ["run=1", "tokens=5"]) == {"run": "1", "tokens": 5}
    with pytest.raises(ConfigError) as caught:
        read_arguments(ask, ["tokns=5", "temperature=very", "what"])
    assert len(caught.value.problems) == 4  # no value, unknown, wrong type, missing run


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

    for part in (short, long):
        assert keyword_only(part) == ["text", "grid"]
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
    (sentence,) = diagnose("train", ["model.batch_size=3"], preflight.check)
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
