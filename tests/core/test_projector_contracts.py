"""What every projector keeps to; a method is tested as soon as its YAML exists."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dpn import DPNForConditionalGeneration, cost, projectors
from dpn.config.compose import CONFIG_DIR
from dpn.cost import Unreachable
from dpn.projectors.base import NEAR

from .conftest import collate, make_model, make_samples, without
from .test_cost import count

FILES = sorted((Path(CONFIG_DIR) / "projector").glob("*.yaml"))
SETTINGS = {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in FILES}
#: As the YAML says, and with half of the tokens.
CASES = SETTINGS | {
    f"{name}, half": settings | {"keep": 0.5}
    for name, settings in SETTINGS.items()
    if "keep" in settings
}
#: One case of each method, with half of the tokens where that can be asked for.
METHODS = {name: f"{name}, half" if f"{name}, half" in CASES else name for name in SETTINGS}


@pytest.fixture(params=SETTINGS)
def name(request):
    return request.param


def model_of(case, router=None):
    return make_model(router, CASES[case], seed=3)


def test_every_projector_has_a_yaml_that_says_how_to_use_it():
    assert set(SETTINGS) == set(projectors.names())
    for file in FILES:
        assert f"python -m dpn.train projector={file.stem}" in file.read_text().splitlines()[0]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_rows_are_those_of_grid_after_and_every_sample_is_as_if_alone(case):
    """Several sizes, one of two cells, two images per sample, and a sample of text alone."""
    model, samples = model_of(case), make_samples()
    together = model(**collate(samples))
    projector = model.projector
    for b, sample in enumerate(samples):
        alone = model(**collate([sample]))
        width = len(sample[0])
        torch.testing.assert_close(
            together.logits[b, :width], alone.logits[0], atol=2e-5, rtol=1e-4
        )
        grids = [(image.shape[1] // 4, image.shape[2] // 4) for image in sample[2]]
        assert list(together.trace.tower_grids[b]) == grids
        left = [h * w for h, w in together.trace.grids[b]]
        most = [h * w for h, w in map(projector.grid_after, grids)]
        assert together.trace.visual_rows[0][b] == sum(left)
        if projector.adaptive:
            assert all(1 <= n <= m for n, m in zip(left, most, strict=True))
        else:
            assert left == most


@pytest.mark.parametrize("case", METHODS.values())
@torch.no_grad()
def test_owners_and_the_positions_that_follow_from_them(case):
    model = model_of(case)
    model.router.positions = "keep"
    pack, seen = model._pack, []
    model._pack = lambda *inputs: seen.append(pack(*inputs)) or seen[0]
    batch = collate(make_samples())
    trace = model(**batch).trace
    every = [grid for grids in trace.tower_grids for grid in grids]
    spans = iter(seen[0].spans)
    for span, grid in zip(seen[0].spans, every, strict=True):
        assert span.owner.shape == (span.source[0] * span.source[1],)
        assert span.owner.min() >= -1
        assert span.owner.max() < span.rows
        assert span.source in (model.projector.tower_grid(grid), span.grid)
    expected = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        position = 0
        for token in ids[mask.bool()].tolist():
            cells = 1
            if token == model.config.image_token_id:
                span = next(spans)
                cells = span.source[0] * span.source[1]
                first = {r: c for c, r in reversed(list(enumerate(span.owner))) if r >= 0}
                expected += [position + first.get(row, 0) for row in range(span.rows)]
            else:
                expected.append(position)
            position += cells
    assert seen[0].positions.tolist() == expected


@pytest.mark.parametrize("case", METHODS.values())
def test_gradients_reach_projector_and_tower(case):
    model = model_of(case).train()
    model(**collate(make_samples()), step=2).loss.backward()
    for part in (model.projector, model.vision):
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
    assert all(p.grad.any() for n, p in model.projector.named_parameters() if "bias" not in n)
    assert model.vision.model.embeddings.patch_embeddings.projection.weight.grad.any()


@pytest.mark.parametrize("case", METHODS.values())
def test_text_alone_trains_the_same_parameters(case):
    model = model_of(case).train()
    grads = []
    for which in ([0], [2]):
        model.zero_grad()
        model(**collate(make_samples(which))).loss.backward()
        grads.append({n for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0] == grads[1]


@pytest.mark.parametrize("case", METHODS.values())
@torch.no_grad()
def test_saved_and_loaded_again(case, tmp_path):
    model = model_of(case)
    model.save_pretrained(tmp_path)
    again = DPNForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = collate(make_samples())
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    "router",
    [pytest.param(None, marks=pytest.mark.slow), {"name": "dpe", "layers": [0, 2], "min_rows": 1}],
)
@pytest.mark.parametrize("case", METHODS.values())
def test_cached_generation_equals_computing_again(case, router):
    model = model_of(case, router)
    batch = without(collate(make_samples([1, 2, 4]), side="left"), "labels")
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**batch, **options)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))


@pytest.mark.parametrize("case", CASES)
def test_flops_equal_the_counter(case):
    model = model_of(case)
    model.attention = "segments"
    ids, _, images = make_samples([1])[0]
    batch = without(collate([(ids, ids, images)]), "labels")
    out, counted = count(lambda: model(**batch, logits_to_keep=1))
    assert cost.prefill_flops(model, out.trace, [len(ids) - len(images)]) == [counted]


def test_every_projector_has_a_keep():
    assert all("keep" in settings for settings in SETTINGS.values())


def test_facts_of_the_class(name):
    kind = projectors.resolve(name)
    weights, plain = (
        {name: p.shape for name, p in model.projector.named_parameters()}
        for model in (model_of(METHODS[name]), make_model())
    )
    assert kind.own_weights == (weights != plain)
    assert (kind.meets_keep == "never") == ("keep" in kind.ignores)
    assert set(kind.ignores) <= set(SETTINGS[name])


def test_half_of_the_tokens_of_llava(name):
    """Met to a token, or as nearly as the method can, or refused if that is too far."""
    kind, half = projectors.resolve(name), CASES[f"{name}, half"]
    with torch.device("meta"):
        sizes = {"input_size": 32, "output_size": 32, "grid": (24, 24)}
        projector = projectors.build(**half, **sizes)
        height, width = projector.grid_after((24, 24))
        share, problems = height * width / 576, projector.check()
        if kind.meets_keep == "never":
            assert problems == []
            return
        if kind.meets_keep == "exactly":
            assert share == pytest.approx(0.5)
        elif not kind.calibrated:
            assert projector.reach() == pytest.approx((share, share))
        low, high = projector.reach()
        far = not low - NEAR <= 0.5 <= high + NEAR
        assert [type(problem) for problem in problems] == [Unreachable] * far
        bad = projectors.build(**half | {"keep": 1.5}, **sizes)
        assert any("projector.keep=1.5 must be" in problem for problem in bad.check())
