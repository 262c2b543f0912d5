"""Compare the plan of a run with real tensors, torch's own counters and counts by hand."""

import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from dpn import DPNForConditionalGeneration, plan
from dpn.config import build
from dpn.config.compose import compose
from dpn.data.row_budget import RowBudgetSampler
from dpn.measure import footprint
from dpn.measure.dry_run import make_batch
from dpn.measure.fitting import smaller, verdict
from dpn.measure.footprint import Rehearsal, Setup
from dpn.metrics.memory import GIB
from dpn.runs.request import ConfigError
from dpn.training.strategies import shard

SMALL = [
    "model.text.hidden_size=64",
    "model.text.intermediate_size=160",
    "model.text.num_hidden_layers=4",
    "model.text.num_attention_heads=4",
    "model.vocab_size=128",
    "model.min_rows=1",
    "model.vision.width=32",
    "model.vision.depth=1",
    "data.batch_size=4",
    "plan.text_rows=40",
]
TWO_LAYERS = "model.text.num_hidden_layers=2"
ONE = Setup("single", half=False, processes=1, batch_size=4)
TEXT = 40


def composed(*overrides):
    return compose("plan", [*SMALL, *overrides])


def rehearse(config):
    return Rehearsal(build.meta_module(config))


def real_model(config):
    """Return the model of a config with real weights, and a batch of the planned size."""
    module = build.meta_module(config)
    torch.manual_seed(config.seed)
    model = DPNForConditionalGeneration(build.model_config(config)).train()
    model.checkpoint_layers = model.vision.checkpoint_layers = config.model.checkpoint_layers
    for mine, other in zip(model.parameters(), module.model.parameters(), strict=True):
        mine.requires_grad_(other.requires_grad)
    return model, make_batch(model, ONE.batch_size, TEXT)


def test_saved_activations_are_those_that_autograd_saves():
    config = composed("router=none", "model.checkpoint_layers=false", TWO_LAYERS).config
    model, batch = real_model(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(**batch)
    assert out.loss.requires_grad
    planned = rehearse(config).step(ONE, TEXT, "most").saved
    assert planned == pytest.approx(sum(s.nbytes() for s in saved.values()), rel=0.03)


@pytest.mark.slow
def test_checkpointing_saves_the_inputs_of_layers_alone():
    saved = {}
    for layers in (1, 2):
        config = composed(
            "router=none", "model.checkpoint_layers=true", f"model.text.num_hidden_layers={layers}"
        ).config
        saved[layers] = rehearse(config).step(ONE, TEXT, "most").saved
    rows = ONE.batch_size * (TEXT + 64)  # 8 x 8 patches
    assert saved[2] - saved[1] == rows * 64 * 4  # rows, width, fp32


@pytest.mark.slow
def test_checkpointing_lowers_the_peak():
    peaks = []
    for value in ("true", "false"):
        config = composed("router=none", f"model.checkpoint_layers={value}").config
        peaks.append(sum(rehearse(config).step(ONE, TEXT, "most").peak.values()))
    assert peaks[0] < 0.7 * peaks[1]


@pytest.mark.parametrize("optim", ["adamw", "sgd", "muon"])
def test_held_memory_is_that_of_a_trained_model(optim):
    config = composed(f"optim={optim}", "stage.freeze=[vision]").config
    held = rehearse(config).held(ONE)
    module = build.meta_module(config).to_empty(device="cpu")
    from dpn.training.module import parameter_groups

    optimizer = module.make_optimizer(parameter_groups(module, module.schedule))
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    weights = list(module.parameters())
    assert held["weights"] == sum(p.nbytes for p in weights)
    assert held["gradients"] == sum(p.grad.nbytes for p in weights if p.grad is not None)
    expected = sum(t.nbytes for t in states)
    assert held["optimizer states"] == pytest.approx(expected, rel=1e-3)
    assert expected > 0


@pytest.fixture
def four_processes():
    """Set up a fake process group, as the first of four processes."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield 4
    dist.destroy_process_group()


@pytest.mark.slow
def test_shards_are_those_of_fsdp2(four_processes):
    config = composed("trainer=fsdp2", f"trainer.devices={four_processes}").config
    setup = plan.setup_of(config)
    assert (setup.engine, setup.half, setup.processes) == ("fsdp2", True, 4)
    module = build.meta_module(config)
    mesh = dist.init_device_mesh("cpu", (four_processes,))
    shard(module.model, module.routing_loss, mesh, torch.bfloat16)
    local = sum(p.to_local().nbytes for p in module.model.parameters())
    # The table of positions, [1, rows, width], cannot be split: the first process holds all of it.
    table = module.model.vision.model.embeddings.position_embeddings.to_local().nbytes
    local -= table - table // four_processes
    assert rehearse(config).held(setup)["weights"] == pytest.approx(local, rel=1e-3)


@pytest.mark.parametrize(
    ("checkpoint", "freeze"),
    [
        ("true", "[vision]"),
        ("false", "[]"),
        pytest.param("true", "[]", marks=pytest.mark.slow),
        pytest.param("false", "[vision]", marks=pytest.mark.slow),
        pytest.param("true", "[vision,language,lm_head]", marks=pytest.mark.slow),
        pytest.param("false", "[vision,language,lm_head]", marks=pytest.mark.slow),
    ],
)
def test_flops_are_those_of_torchs_counter(checkpoint, freeze):
    config = composed(
        *("router=none", f"stage.freeze={freeze}", f"model.checkpoint_layers={checkpoint}"),
        TWO_LAYERS,
    ).config
    model, batch = real_model(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**batch).loss.backward()
    # Flash attention computes the scores once more in its backward pass: layers, rows, width.
    again = 2 * (TEXT + 64) ** 2 * 64 + ("vision" not in freeze) * (64 + 1) ** 2 * 32
    expected = counter.get_total_flops() + 2 * ONE.batch_size * again
    assert rehearse(config).step(ONE, TEXT, "most").flops == expected


@pytest.mark.slow
def test_planned_routes_are_the_limits_of_the_router():
    rehearsal = rehearse(composed("router=dpe", "router.layers=[0]", TWO_LAYERS).config)
    most, fewest = (rehearsal.step(ONE, TEXT, rows) for rows in ("most", "fewest"))
    assert (fewest.share, most.share) == pytest.approx(rehearsal.module.model.router.reach())
    assert fewest.flops < most.flops
    assert sum(fewest.peak.values()) < sum(most.peak.values())


@pytest.mark.slow
def test_a_fixed_kernel_has_one_route():
    static = ["router=static", "router.layers=[0]", "router.kernels=[2,2]"]
    rehearsal = rehearse(composed(*static, TWO_LAYERS).config)
    shares = [rehearsal.step(ONE, TEXT, rows).share for rows in ("most", "fewest", "all")]
    assert shares[0] == shares[1] < shares[2] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yopo", "redundancy_lens"])
def test_work_that_layers_leave_out_is_known_without_data(name):
    rehearsal = rehearse(composed(f"router={name}").config)
    router = rehearsal.module.model.router
    strength = 1.0 if name == "yopo" else router.strength
    share = rehearsal.step(ONE, TEXT, "most").share
    assert share == pytest.approx(router.share(strength))
    assert share < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["router=aim", "router.routers=[{name: aim}]"])
def test_rows_that_a_method_drops_are_known_without_data(choice):
    names = ["router=chain", choice] if "routers" in choice else [choice]
    rehearsal = rehearse(composed(*names).config)
    router = rehearsal.module.model.router
    aim = router.members[0] if "routers" in choice else router
    share = rehearsal.step(ONE, TEXT, "most").share
    assert share == pytest.approx(aim.share(aim.strength))


@pytest.mark.slow
def test_a_further_pass_of_the_routing_loss_is_counted():
    frozen = "stage.freeze=[vision,projector,language,lm_head]"
    gates = ["router=dyvte", "router.hidden=8", frozen, TWO_LAYERS]
    rehearsal = rehearse(composed(*gates).config)
    text = rehearsal.module.model.router.text
    gate = 2 * ONE.batch_size * (2 * text.hidden_size * 8 + 8 * 2)
    once = rehearse(composed(*gates, "loss=language").config).step(ONE, TEXT, "most").flops
    expected = 2 * once - (text.num_layers - 1) * gate  # gates that the further pass does not run
    assert rehearsal.step(ONE, TEXT, "most").flops == expected


@pytest.mark.slow
def test_rows_that_skip_layers_are_known_without_data():
    rehearsal = rehearse(composed("router=depth_routing").config)
    router = rehearsal.module.model.router
    step = rehearsal.step(ONE, TEXT, "most")
    assert step.share == pytest.approx(router.share(router.strength))
    assert step.flops < rehearsal.step(ONE, TEXT, "all").flops


@pytest.mark.slow
def test_half_precision():
    """Autocast keeps weights and residual stream in fp32, sharding engines compute with bf16."""
    rehearsal = rehearse(composed("router=none").config)
    peaks = {}
    for engine in ("single", "fsdp2", "zero2"):
        setup = Setup(engine, half=True, processes=1, batch_size=4)
        peaks[engine] = rehearsal.memory(setup, TEXT).passing
    copies = "weights in another precision"
    assert copies in peaks["single"]
    assert copies not in peaks["zero2"]
    assert peaks["zero2"]["activations"] < peaks["single"]["activations"]


@pytest.mark.slow
def test_a_run_of_the_paper_needs_no_files():
    request = compose(
        "plan",
        [
            "experiment=dpn_llava_1_5_7b",
            "trainer.devices=8",
            "model.text.num_hidden_layers=4",
            "data.batch_size=2",
        ],
    )
    memory, figures = plan.plan(request)
    assert figures["time/steps"] == 5198  # from LLaVA's log of this data, at 128 samples a step
    assert (figures["engine"], figures["gpus"]) == ("zero2", 8)
    assert figures["time/hours_fewest_rows"] < figures["time/hours"]
    assert figures["memory/longest_gib"] > figures["memory/average_gib"]
    by_hand = figures["time/step_flops"] * 5198 / (8 * 989e12 * 0.4) / 3600
    assert figures["time/hours"] == pytest.approx(by_hand)
    assert sum(memory["longest samples"].held.values()) < memory["longest samples"].total


@pytest.mark.slow
def test_batches_of_equally_many_rows(monkeypatch):
    """40 rows of text and half of the 64 of an image: 6 samples in a batch, 36 in a step."""
    half = ["router=none", "projector=pooled", "projector.kernel=[1,2]", "optim=adamw"]
    steps = ["trainer.devices=2", "trainer.accumulate_grad_batches=3", "plan.samples=100"]
    config = composed(
        "data.rows_per_batch=500", *half, *steps, "model.text.num_hidden_layers=1", "stage.dense=0"
    )
    rehearsal = rehearse(config.config)
    monkeypatch.setattr(footprint, "Rehearsal", lambda module: rehearsal)  # reuse its steps
    memory, figures = plan.plan(config)
    sampler = RowBudgetSampler(np.full(100, 72), 500, accumulate=3, world=2)
    assert figures["time/steps"] == sampler.steps == 3
    by_samples = Setup("ddp", False, 2, batch_size=6)
    assert memory["average samples"] == rehearsal.memory(by_samples, TEXT)
    one = Setup("ddp", False, 2, batch_size=1)  # 468 and 32 rows fill a batch
    assert memory["longest samples"] == rehearsal.memory(one, 468)
    assert "40 text tokens of a sample (plan.text_rows), 468 at most" in figures["assumed"]
    override, smaller_setup = next(smaller(plan.setup_of(config.config)))
    assert (override, rehearsal.samples(smaller_setup, TEXT)) == ("data.rows_per_batch=250", 3)


@pytest.mark.slow
def test_hours_follow_the_keep():
    hours = {}
    for keep in ("0.5", "0.7"):
        _, figures = plan.plan(composed(f"router.keep={keep}", "stage.dense=0"))
        hours[keep] = figures["time/hours"]
        assert figures["time/hours_fewest_rows"] < hours[keep]
    assert hours["0.5"] < hours["0.7"]


@pytest.mark.slow
def test_verdict_suggests_settings_that_fit():
    overrides = ["trainer=fsdp2", "trainer.devices=2", "data.global_batch=8", "router=none"]
    config = composed(*overrides, "model.text.num_hidden_layers=1").config
    rehearsal, setup = rehearse(config), plan.setup_of(config)
    text, _ = plan.longest_text(config, rehearsal.image_rows)
    whole, half = (
        rehearsal.memory(s, text).total / GIB
        for s in (setup, Setup("fsdp2", True, 2, batch_size=2))
    )
    of_longest = partial(verdict, rehearsal, setup, {"longest samples": text}, global_batch=8)
    sentence = of_longest((whole + half) / 2)
    assert sentence.startswith("It does not fit")
    offered = re.findall(r"([^;:]+) \(", sentence.partition("would do")[2])
    assert [override.strip() for override in offered][::2] == [
        "data.batch_size=2",
        "4 GPUs data.batch_size=2",
    ]
    assert of_longest(whole + 1).startswith("It fits")
    assert "smaller model" in of_longest(1e-9)


@pytest.mark.slow
def test_training_warns_if_memory_is_too_small(monkeypatch):
    class Small:
        total_memory = 2**20

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Small)
    assert "does not fit" in plan.warning(composed("trainer=gpu").config)
    assert plan.warning(composed("trainer=cpu").config) is None
    Small.total_memory = 2**40
    assert plan.warning(composed("trainer=gpu").config) is None


def test_mistakes_are_refused():
    def problems(*overrides):
        with pytest.raises(ConfigError) as caught:
            plan.plan(composed(*overrides))
        return caught.value.problems

    assert any("plan.utilisation=0" in p for p in problems("plan.utilisation=0"))
    assert any("trainer.precision=16-true" in p for p in problems("trainer.precision=16-true"))
    assert any("trainer.strategy=fsdp" in p for p in problems("+trainer.strategy=fsdp"))
    unknown = [
        "data=llava_json",
        "data.train_file=none.json",
        "data.image_root=.",
        "trainer.max_steps=-1",
    ]
    assert any("plan.samples=N" in p for p in problems(*unknown))
    assert any("data.global_batch=7" in p for p in problems("data.global_batch=7"))
    assert any("projector=dfmr" in p for p in problems("projector=dfmr"))
    (small,) = problems("router=none", "data.rows_per_batch=64")
    assert "an image alone is expected to have 64 rows" in small


@pytest.mark.slow
def test_a_projector_that_chooses_by_content_can_be_planned():
    shares = [
        plan.plan(composed("router=none", *options))[1]["time/step_flops"]
        for options in (["projector=mlp"], ["projector=visionzip", "projector.keep=0.25"])
    ]
    assert shares[1] < 0.7 * shares[0]
