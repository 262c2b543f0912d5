"""Tests with ZeRO checkpoints of several processes, laid out by hand and written by runs."""

import os
import shutil
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from dpn import DPNForConditionalGeneration
from dpn.checkpoints import containers, convert, load
from dpn.checkpoints.zero import open_zero
from tests.app.conftest import tiny_run, write_squares
from tests.app.test_distributed import ENGINES, ZERO, train
from tests.checkpoints.conftest import VOCABULARY
from tests.checkpoints.test_loading import our_model

WORLD = 3
OPTIMIZER = "checkpoint/zero_pp_rank_{}_mp_rank_00_optim_states.pt"
MODEL = "checkpoint/zero_pp_rank_{}_mp_rank_00_model_states.pt"
WHOLE = "checkpoint/mp_rank_00_model_states.pt"
ROUTER = {"name": "dpe", "layers": [1], "min_rows": 1, "reduce": "conv"}
SCALER = "deepspeed.runtime.fp16.loss_scaler.LossScaler"


def model(seed=5):
    """Build a model with a frozen tower, tied tables and a buffer."""
    built = our_model(VOCABULARY + 1, router=ROUTER, seed=seed)
    built.lm_head.weight = built.language.embed_tokens.weight
    built.router.price.fill_(float(seed))
    built.vision.requires_grad_(False)
    return built


def parted(tensor, multiple, world):
    """Split a flattened, padded tensor into equal parts."""
    flat = torch.nn.functional.pad(tensor.flatten(), (0, -tensor.numel() % multiple), value=9.0)
    return flat.chunk(world)


def write_zero(folder, stage, world=WORLD, scaler=None):
    """Write the weights of `model()` as a DeepSpeed folder with two groups of parameters."""
    built = model()
    weights = {f"model.{n}": p.detach() for n, p in built.named_parameters()}
    frozen = {n: p for n, p in weights.items() if "vision" in n}
    groups = [
        {n: p for n, p in weights.items() if n not in frozen and (p.ndim == 1) == flat}
        for flat in (True, False)
    ]
    states = []
    for rank in range(world):
        mine = {n: parted(p, world, world)[rank] for n, p in weights.items()}
        if stage == 3:
            flat = [torch.cat([mine[n] for n in group]) for group in groups]
        else:  # padding at the end is not saved
            wholes = [torch.cat([p.flatten() for p in group.values()]) for group in groups]
            parts = [parted(whole, 2 * world, world) for whole in wholes]
            flat = [
                part[rank][: max(len(whole) - rank * len(part[0]), 0)]
                for whole, part in zip(wholes, parts, strict=True)
            ]
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        count = world if stage == 3 else [world] * len(groups)
        optimizer = {"zero_stage": stage, "partition_count": count, key: flat, "scaler": scaler}
        module = {"model.router.price": built.router.price}
        states.append(
            {
                "module": module,
                "buffer_names": [*module],
                "param_shapes": [{n: p.shape for n, p in group.items()} for group in groups],
                "frozen_param_shapes": {n: p.shape for n, p in frozen.items()},
                "frozen_param_fragments": {n: (mine if stage == 3 else frozen)[n] for n in frozen},
                "shared_params": {"model.lm_head.weight": "model.language.embed_tokens.weight"},
                "dp_world_size": world,
            }
        )
        (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
        torch.save({"optimizer_state_dict": optimizer}, folder / OPTIMIZER.format(rank))
        if stage == 3:
            torch.save(states[-1], folder / MODEL.format(rank))
    if stage != 3:
        torch.save(states[0], folder / WHOLE)
    return built.state_dict()


@pytest.fixture
def foreign(monkeypatch):
    """Create classes by dotted name, in modules that do not exist."""

    def make(path, **body):
        module, _, name = path.rpartition(".")
        kind = type(name, (), {"__module__": module, **body})
        for place in (module.partition(".")[0], module):
            monkeypatch.setitem(sys.modules, place, ModuleType(place))
        setattr(sys.modules[module], name, kind)
        return kind

    return make


@pytest.mark.parametrize("world", [1, WORLD])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_layout_of_each_stage(stage, world, tmp_path, monkeypatch):
    expected = write_zero(tmp_path, stage, world)
    monkeypatch.setattr(containers, "PART_BYTES", 40_000)
    assert len(open_zero(tmp_path)) > 3
    for place in (tmp_path, tmp_path / "checkpoint"):
        built = model(seed=8)
        report = load(built, place)
        assert (report.title, report.missing, report.unexpected) == ("DPN", {}, {})
        for name, tensor in built.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_deepspeed_need_not_be_installed(foreign, tmp_path, monkeypatch):
    scaler = foreign(SCALER)()
    scaler.cur_scale = 1.0
    expected = write_zero(tmp_path, 2, scaler=scaler)
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # importing it fails
    load(built := model(seed=8), tmp_path)
    assert torch.equal(built.lm_head.weight, expected["lm_head.weight"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("code_was_run",)


def test_code_is_refused_and_not_run(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = foreign("deepspeed.runtime.engine.DeepSpeedEngine")
    for number, scaler in enumerate((Evil(), other())):
        write_zero(tmp_path / str(number), 2, scaler=scaler)
        with pytest.raises(ValueError, match=r"optim_states\.pt holds more than .* refused"):
            load(model(), tmp_path / str(number))
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_missing_files_are_named(stage, tmp_path):
    write_zero(tmp_path, stage)
    (tmp_path / OPTIMIZER.format(1)).rename(tmp_path / "kept")
    lacks = r"lacks zero_pp_rank_1_mp_rank_00_optim_states\.pt; copy the files of all 3"
    with pytest.raises(FileNotFoundError, match=lacks):
        load(model(), tmp_path)
    (tmp_path / "kept").rename(tmp_path / OPTIMIZER.format(1))
    name = MODEL.format(2) if stage == 3 else WHOLE
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name.partition('/')[2]}"):
        load(model(), tmp_path)
    for rank in range(WORLD):
        (tmp_path / OPTIMIZER.format(rank)).unlink()
    (tmp_path / WHOLE).touch()
    with pytest.raises(FileNotFoundError, match=r"lacks zero_pp_rank_N_.*states\.pt of every"):
        load(model(), tmp_path)


def test_a_file_cut_short_or_of_something_else_is_named(tmp_path):
    write_zero(tmp_path, 3)
    path = tmp_path / OPTIMIZER.format(1)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"rank_1_.*_optim_states\.pt is damaged or incomplete"):
        load(model(), tmp_path)
    for content in ([1], {"optimizer_state_dict": {"partition_count": WORLD}}):
        for rank in range(WORLD):
            torch.save(content, tmp_path / OPTIMIZER.format(rank))
        with pytest.raises(ValueError, match=r"is damaged or incomplete .*ZeRO"):
            load(model(), tmp_path)


@pytest.mark.parametrize(
    ("stage", "world", "copied", "to", "why"),
    [
        (3, 2, OPTIMIZER.format(1), OPTIMIZER.format(1), "2 and 3 processes wrote them"),
        (3, 2, MODEL.format(0), MODEL.format(0), "2 and 3 processes wrote them"),
        (2, 2, WHOLE, WHOLE, "2 and 3 processes wrote them"),
        (2, 3, OPTIMIZER.format(0), OPTIMIZER.format(3), "3 processes wrote 4 optim states"),
    ],
)
def test_files_of_different_worlds_are_refused(stage, world, copied, to, why, tmp_path):
    write_zero(tmp_path, stage)
    write_zero(tmp_path / "other", stage, world)
    shutil.copy(tmp_path / "other" / copied, tmp_path / to)
    with pytest.raises(ValueError, match=rf"checkpoint are of different runs: {why}; copy those"):
        load(model(), tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda flat: [part[:-4] for part in flat], "they hold only a part of model"),
        (lambda flat: [part.repeat(2) for part in flat], "the group of model.* too many"),
        (lambda flat: flat[:1], "they have different groups of parameters"),
    ],
)
@pytest.mark.parametrize("stage", [2, 3])
def test_optimizers_of_another_model_are_refused(stage, change, why, tmp_path):
    write_zero(tmp_path, stage)
    for rank in range(WORLD):
        path = tmp_path / OPTIMIZER.format(rank)
        state = torch.load(path)
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        state["optimizer_state_dict"][key] = change(state["optimizer_state_dict"][key])
        torch.save(state, path)
    with pytest.raises(ValueError, match=f"are of different runs: {why}"):
        load(model(), tmp_path)


def test_gaps_between_parameters_are_refused(tmp_path):
    write_zero(tmp_path, 2)
    for gaps in ([0, 0], [0, 4]):
        for rank in range(WORLD):
            path = tmp_path / OPTIMIZER.format(rank)
            state = torch.load(path)
            state["optimizer_state_dict"]["param_alignment_paddings"] = [[0], gaps]
            torch.save(state, path)
        if any(gaps):
            with pytest.raises(ValueError, match=r"parameter_alignment, .* zero_to_fp32\.py"):
                load(model(), tmp_path)
        else:
            load(model(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_a_checkpoint_holds_what_the_run_ends_with(engine, precision, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    common = tiny_run(write_squares(tmp_path), tmp_path)
    changes = [
        *("trainer.accelerator=cpu", f"trainer.devices={WORLD}", "data.batch_size=1"),
        *(f"trainer.precision={precision}", "trainer.max_steps=2", f"{ZERO}.sub_group_size=3000"),
        *("optim=llava", "optim.weight_decay=0.1", "optim.schedule=constant"),
        *("stage.freeze=[vision]", "stage.dense=0", "router.reduce=conv", "loss=hinge"),
    ]
    final = train([*common, *ENGINES[engine], *changes], tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-0000002.ckpt"
    built = DPNForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    report = load(built, checkpoint)
    assert (report.missing, report.unexpected) == ({}, {})
    convert(checkpoint, tmp_path / "ours", like=tmp_path / "run" / "model")
    converted = load_file(tmp_path / "ours" / "model.safetensors")
    assert converted.keys() == built.state_dict().keys() == final.keys()
    trained_in = torch.float32 if precision == "32-true" else torch.bfloat16
    for name, tensor in final.items():  # whatever it is kept in
        assert torch.equal(built.state_dict()[name].to(trained_in), tensor.to(trained_in)), name
        assert torch.equal(converted[name].to(trained_in), tensor.to(trained_in)), name
        if not name.startswith("vision."):
            assert converted[name].dtype == torch.float32, name
