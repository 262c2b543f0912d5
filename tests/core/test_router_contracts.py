"""What every router keeps to. Routers are found by their YAML: a new one is tested as it is."""

from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dpn import DPNForConditionalGeneration, routers
from dpn.cost import TextShape, Unreachable, decoder_flops, prefill_flops, visual_macs
from dpn.training.calibration import LARGEST_PRICE

from .conftest import ROUTER, collate, make_model, make_samples, without
from .test_cost import count

FOLDER = Path(__file__).parents[2] / "configs" / "router"
#: What the YAMLs take from other groups.
OTHERS = {"model": {"min_rows": 1, "gate_temperature": 10.0}, "loss": {"keep": None}}
ROUTERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
KINDS = {name: routers.resolve(name) for name in ROUTERS}
WITH_KEEP = [name for name, kind in KINDS.items() if kind.meets_keep != "never"]
#: Gates would be as wide as the decoder of a 7B, which is too large here.
EXACT = [
    name for name, kind in KINDS.items() if kind.meets_keep == "exactly" and not kind.own_weights
]
LLAVA = TextShape(32, 4096, 4096, 11008, kv_heads=2)
TINY = TextShape(4, 32, 16, 48, kv_heads=2)


@cache
def section_of(name):
    """The router's section as its YAML gives it."""
    whole = OmegaConf.create({**OTHERS, "router": OmegaConf.load(FOLDER / f"{name}.yaml")})
    return OmegaConf.to_container(whole, resolve=True)["router"]


def config_of(name, text=TINY):
    """That section with stand-ins for what comes from data."""
    return {**section_of(name), **KINDS[name].example(text)}


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def without_labels(samples, side="right"):
    """A batch in which only `instruction_end` tells where answers begin."""
    batch = collate(samples, side)
    supervised = batch.pop("labels") != -100
    ends = batch["attention_mask"].shape[1] - batch["attention_mask"].flip(1).argmax(1)
    first = torch.where(supervised.any(1), supervised.long().argmax(1), ends)
    return {**batch, "instruction_end": first}


@pytest.fixture(params=ROUTERS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return make_model(config_of(name), seed=3)


def test_yaml_opens_with_its_command_and_has_a_keep(name):
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("#")
    assert f"python -m dpn.train router={name}" in first
    assert config_of(name)["name"] == name
    assert "keep" in config_of(name)


@torch.no_grad()
def test_a_sample_without_image_is_untouched(model):
    plain = make_model(seed=3)
    batch = collate(make_samples([2]))
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    mixed = model(**collate(make_samples())).logits[2, :8]  # text only, among samples with images
    close(mixed, plain(**batch).logits[0])


@torch.no_grad()
def test_a_batch_equals_one_sample_at_a_time(model):
    samples = make_samples()
    everyone = [model(**collate([sample])) for sample in samples]
    for side in ("left", "right"):
        batch = collate(samples, side)
        out = model(**batch)
        for b, alone in enumerate(everyone):
            close(out.logits[b][batch["attention_mask"][b].bool()], alone.logits[0])
            assert [rows[b] for rows in out.trace.visual_rows] == [
                rows[0] for rows in alone.trace.visual_rows
            ]


@torch.no_grad()
def test_rows_and_flops_of_layers_are_those_of_the_trace(model):
    samples = make_samples()
    seen = []
    for layer in model.language.layers:
        layer.post_attention_layernorm.register_forward_hook(
            lambda _, inputs, out: seen.append(out.flatten(0, -2).shape[0])
        )
    trace = model(**collate(samples)).trace
    text = sum(len(ids) - len(images) for ids, _, images in samples)
    assert seen == [sum(rows) + text for rows in trace.visual_rows]
    fewer = False
    for decision in trace.decisions:
        before = tuple(sum(h * w for h, w in grids) for grids in decision.grids)
        fewer |= decision.kept != before
    whole = [sum(trace.base_rows) + text] * len(seen)
    assert (seen[-1] < whole[-1]) == fewer
    text_config = model.config.text_config
    assert (decoder_flops(seen, text_config) < decoder_flops(whole, text_config)) == fewer


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_prefill_flops_equal_the_counter(name, model, which):
    """The attention that a router looks at is counted; its gates and what it merges by are not."""
    model.attention = "segments"
    ids, _, images = make_samples([which])[0]
    batch = without(collate([(ids, ids, images)]), "labels")
    out, counted = count(lambda: model(**batch, logits_to_keep=1))
    (formula,) = prefill_flops(model, out.trace, [len(ids) - len(images)])
    if KINDS[name].uncounted_flops:
        assert formula < counted
    else:
        assert formula == counted


@torch.no_grad()
def test_appended_text_equals_recomputed(model):
    samples = make_samples()
    batch = without_labels(samples)
    cache = model(**batch, use_cache=True).past_key_values
    more = torch.randint(3, 40, (len(samples), 3))
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], 1)
    out = model(input_ids=more, attention_mask=mask, past_key_values=cache)
    for b, (ids, _, images) in enumerate(samples):
        whole = torch.cat([ids, more[b]])
        one = without(collate([(whole, whole, images)]), "labels")
        logits = model(**one, instruction_end=batch["instruction_end"][b : b + 1]).logits[0]
        close(out.logits[b], logits[len(ids) :])


def test_gradients_reach_every_layer(model):
    model.train()(**collate(make_samples())).loss.backward()
    for layer in model.language.layers:
        assert all(p.grad.abs().max() > 0 for p in layer.parameters())
    assert all(p.grad.abs().max() > 0 for p in model.projector.parameters())


@torch.no_grad()
def test_a_saved_router_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = DPNForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = collate(make_samples())
    assert torch.equal(model(**batch).logits, again(**batch).logits)


@torch.no_grad()
def test_answers_never_change_what_goes_on(model):
    """Neither their words nor their labels: all that stands before them comes out the same."""
    samples = make_samples()
    changed = []
    for ids, labels, images in samples:
        answers = labels != -100
        marks = (ids == ROUTER).nonzero()  # a <ROUTER> of a later turn follows earlier answers
        answers[: int(marks[-1]) if len(marks) else 0] = False
        ids = torch.where(answers, (ids + 7) % 40 + 3, ids)
        changed.append((ids, torch.where(labels != -100, ids, -100), images))
    batch = collate(samples)
    one, two = model(**batch), model(**collate(changed))
    assert one.trace.visual_rows == two.trace.visual_rows
    for b, (a, c) in enumerate(zip(samples, changed, strict=True)):
        same = (a[0] == c[0]).long().cumprod(0).bool()
        close(one.logits[b, : len(same)][same], two.logits[b, : len(same)][same])
    close(model(**without_labels(samples)).logits, one.logits)


@pytest.mark.parametrize("name", WITH_KEEP)
@torch.no_grad()
def test_the_whole_share_is_no_compression_or_refused(name):
    model = make_model({**config_of(name), "keep": 1.0}, seed=3)
    batch, plain = collate(make_samples()), make_model(seed=3)
    if problems := model.router.check():
        assert [type(problem) for problem in problems] == [Unreachable]
        return
    if model.router.calibrated:
        model.router.price.fill_(-LARGEST_PRICE)
        assert model(**batch).trace.visual_rows == plain(**batch).trace.visual_rows
    if model.router.lossless:
        close(model(**batch).logits, plain(**batch).logits)


def test_facts_of_the_class(name, model):
    kind = KINDS[name]
    assert kind.own_weights == any(True for _ in model.router.parameters())
    assert set(kind.ignores) | set(kind.files) <= set(section_of(name))
    if kind.meets_keep == "never":
        asked = routers.build(**{**config_of(name), "keep": 0.5}, **model.router.sizes)
        refused = [isinstance(problem, Unreachable) for problem in asked.check()]
        assert refused == ([] if "keep" in kind.ignores else [True])


@pytest.fixture(scope="module")
def deep():
    """As many layers as LLaVA, narrow; a test puts its own router into it."""
    return make_model(layers=32, seed=3)


@pytest.mark.parametrize("keep", [0.3, pytest.param(0.65, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_keep_is_met_at_the_size_of_llava(deep, name, keep):
    """All 576 rows and 32 layers, of a narrow decoder; the share counts the widths of a 7B."""
    router = routers.build(**{**config_of(name, LLAVA), "keep": keep}, text=LLAVA, grid=(24, 24))
    low, high = router.reach()
    if not low <= keep <= high:
        assert isinstance(router.check()[0], Unreachable)
        return
    assert router.check() == []
    deep.router = router
    ids = torch.randint(3, 40, (1, 12))
    ids[0, 4] = deep.config.image_token_id
    trace = deep(input_ids=ids, pixel_values=torch.randn(1, 3, 96, 96)).trace
    assert trace.base_rows == (576,)
    share = visual_macs(trace, 0, LLAVA) / LLAVA.visual_macs([576] * 32)
    assert share == pytest.approx(keep, abs=0.02)


@pytest.mark.parametrize("keep", [0.0, 1.5])
@pytest.mark.parametrize("name", WITH_KEEP)
def test_a_keep_that_is_no_share_is_refused(name, keep):
    section = {**config_of(name, LLAVA), "keep": keep}
    with torch.device("meta"):
        router = routers.build(**section, text=LLAVA, grid=(24, 24))
    assert any(f"router.keep={keep} must be" in problem for problem in router.check())
