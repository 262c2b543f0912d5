"""Projectors that make one token per region of a grid, each against plain loops over one image."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from dpn import projectors
from dpn.config.compose import CONFIG_DIR
from dpn.vision import VisualFeatures

from .conftest import IMAGE, collate, make_model, make_samples
from .features import GRIDS, C, D, build, cells_of_regions, check, features, one_by_one


@pytest.mark.parametrize("kernel", [1, 2, 8])
def test_matryoshka_pool_averages_regions(kernel):
    projector = build("matryoshka_pool", kernel=kernel)
    given = features()
    for (tokens, *_), grid, made in zip(
        one_by_one(given), GRIDS, projector(given).per_image(), strict=True
    ):
        rows = projector.layers(tokens).detach()
        regions = cells_of_regions(grid, kernel)
        torch.testing.assert_close(made, torch.stack([rows[cells].mean(0) for cells in regions]))


@pytest.mark.parametrize("name", ["matryoshka_pool", "matryoshka_query"])
def test_matryoshka_training_draws_sizes_uniformly_and_one_per_step(name):
    options = {"kernels": [1, 2, 5]} if name == "matryoshka_pool" else {"queries": 4, "heads": 4}
    projector = build(name, **options).train()
    seen = [projector(features(training=True, step=step)).grids for step in range(60)]
    first = [grids[0] for grids in seen]
    assert all(grids[0] == grids[2] for grids in seen)
    sizes = {"matryoshka_pool": {(4, 5), (2, 3), (1, 1)}, "matryoshka_query": {(1, 2), (1, 4)}}
    assert set(first) == sizes[name]
    assert all(first.count(grid) >= 60 / len(set(first)) / 2 for grid in set(first))
    projector.eval()
    assert len({projector(features(step=step)).grids for step in range(9)}) == 1


def attend(module, query, keys, values):
    """Attend with one query `[C]` of an `nn.MultiheadAttention`, head by head."""
    width = len(query)
    wq, wk, wv = module.in_proj_weight.split(width)
    bq, bk, bv = module.in_proj_bias.split(width)
    q, k, v = wq @ query + bq, keys @ wk.T + bk, values @ wv.T + bv
    size = width // module.num_heads
    out = []
    for h in range(module.num_heads):
        part = slice(h * size, (h + 1) * size)
        share = (k[:, part] @ q[part] / math.sqrt(size)).softmax(0)
        out.append(share @ v[:, part])
    return module.out_proj.weight @ torch.cat(out) + module.out_proj.bias


def regions_of_image(projector, queries, layers, grid):
    """Compute one token per region in plain loops."""
    levels = torch.cat(layers.unbind(1), -1)
    keys, values = projector.regions.keys(levels), projector.regions.values(levels)
    cells = cells_of_regions(grid, projector.scale)
    rows = [
        attend(projector.regions.attention, query, keys[own], values[own])
        for query, own in zip(queries, cells, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [2, 3])
def test_token_packer(scale):
    projector = build("token_packer", scale=scale, levels=[0, 0.5, 1])
    given = features()
    expected = []
    for (tokens, *_, layers), grid in zip(one_by_one(given), GRIDS, strict=True):
        after = [-(-side // scale) for side in grid]
        small = F.interpolate(tokens.T.reshape(1, C, *grid), after, mode="bilinear")
        queries = projector.queries(small[0].flatten(1).T)
        expected.append(regions_of_image(projector, queries, layers, grid))
    check(projector, given, expected)


@pytest.mark.parametrize(("scale", "question"), [(2, "mean"), (4, "hidden")])
def test_query_conv(scale, question):
    projector = build("query_conv", scale=scale, levels=[0, 0.5, 1], question=question)
    given = features()
    context = given.context
    states = torch.randn(len(GRIDS), len(context.instructions[0][0]))
    given = replace(given, context=replace(context, questions=states))
    weight, bias = projector.convolution.weight[:, 0], projector.convolution.bias
    expected = []
    for i, ((tokens, *_, layers), grid) in enumerate(zip(one_by_one(given), GRIDS, strict=True)):
        text = context.instructions[i]
        asked_for = states[i] if question == "hidden" else sum(text) / len(text)
        asked = projector.queries(tokens + projector.question(asked_for))
        queries = []
        for cells in cells_of_regions(grid, scale):
            rows, columns = zip(*(divmod(cell, grid[1]) for cell in cells), strict=True)
            taps = weight[:, [r % scale for r in rows], [c % scale for c in columns]]  # [C, cells]
            queries.append((taps * asked[cells].T).sum(1) * scale**2 / len(cells) + bias)
        expected.append(regions_of_image(projector, queries, layers, grid))
    check(projector, given, expected)


@torch.no_grad()
def test_query_conv_reads_the_last_hidden_state_of_the_question():
    """The stock model reads each sample's text before its first answer, without the image."""
    settings = {"name": "query_conv", "scale": 2, "question": "hidden"}
    model, samples = make_model(projector=settings, seed=3), make_samples()
    stock = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    stock.model.load_state_dict(model.language.state_dict())
    read = []
    model.projector.question.register_forward_hook(lambda *x: read.extend(x[1][0]))
    model(**collate(samples))
    wanted = []
    for ids, labels, images in samples:
        text = ids[: int((labels != -100).long().argmax())]
        state = stock.model(text[text != IMAGE][None]).last_hidden_state[0, -1]
        wanted += [state] * len(images)
    torch.testing.assert_close(torch.stack(read), torch.stack(wanted), atol=1e-5, rtol=1e-4)


def test_query_conv_reads_the_layers_of_the_release():
    settings = OmegaConf.load(Path(CONFIG_DIR) / "projector" / "query_conv.yaml")
    assert [round(24 * level) for level in settings.levels] == [12, 16, 22, 23]
    assert settings.question == "hidden"


@pytest.mark.parametrize("question", ["mean", "hidden"])
def test_query_conv_depends_on_the_question_but_not_on_answers(question):
    settings = {"name": "query_conv", "scale": 2, "question": question}
    model = make_model(projector=settings, seed=3)
    seen = []
    model.projector.register_forward_hook(lambda *x: seen.append(x[2].tokens))
    ids, labels, images = make_samples([0])[0]
    answer, changed_question = ids.clone(), ids.clone()
    answer[labels != -100] = 7
    changed_question[3] = 7
    for changed in (ids, answer, changed_question):
        model(**collate([(changed, labels, images)]))
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], atol=1e-4)


def test_token_packer_has_small_initial_outputs():
    layers = make_model(projector={"name": "token_packer"}).projector.layers
    assert float(layers[2].weight.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert not layers[0].bias.any()


@pytest.mark.parametrize("width", [16, 24])
def test_matryoshka_query_has_the_positions_of_the_release(width):
    """As in `get_2d_sincos_pos_embed` of MQT: first the column, then the row."""
    sizes = {"input_size": width, "output_size": D, "grid": (4, 5)}
    projector = projectors.build("matryoshka_query", queries=9, heads=2, **sizes)
    for number, found in enumerate(projector.positions):
        row, column = divmod(number, 3)
        wanted = []
        for place in (column, row):
            angles = [place / 10_000 ** (i / (width / 4)) for i in range(width // 4)]
            wanted += [*map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(found, torch.tensor(wanted))


@pytest.mark.parametrize("rows", [1, 5, None])
def test_matryoshka_query(rows):
    projector = build("matryoshka_query", queries=9, rows=rows, heads=2)
    given = features()
    made = projector(given)
    square = projector.positions.T.reshape(1, C, 3, 3)
    norm_q, norm_k, norm_v = projector.norms
    for (tokens, *_), grid, got in zip(one_by_one(given), GRIDS, made.per_image(), strict=True):
        places = F.interpolate(square, grid, mode="bicubic")[0].flatten(1).T
        queries = norm_q(projector.queries + projector.positions)[: rows or 9]
        wanted = [attend(projector.attention, q, norm_k(places), norm_v(tokens)) for q in queries]
        torch.testing.assert_close(got, torch.stack(wanted) @ projector.output)


def test_dfmr_pools_plain_images_more():
    given = features()
    plain = torch.cat([(0.2 + i) / 3 * t for i, t in enumerate(given.tokens.split([20, 9, 20, 2]))])
    given = VisualFeatures(plain, GRIDS)
    threshold = 0.5
    projector = build("dfmr", kernels=[2, 3], threshold=threshold)
    expected, sides = [], []
    for tokens, grid in zip(given.per_image(), GRIDS, strict=True):
        side = 1
        for kernel in (2, 3):
            regions = cells_of_regions(grid, kernel)
            spread = [tokens[cells].std(0, correction=0).mean() for cells in regions]
            if sum(spread) / len(spread) <= threshold:
                side = kernel
        sides.append(side)
        expected.append(torch.stack([tokens[c].mean(0) for c in cells_of_regions(grid, side)]))
    assert set(sides) >= {1, 3}
    check(projector, given, expected)
