"""Each method's rule against a naive statement of it: plain loops over one image."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpn import projectors
from dpn.vision import ImageContext, VisualFeatures

from .conftest import collate, make_model, make_samples

GRIDS = ((4, 5), (3, 3), (4, 5), (1, 2))
C, D, HEADS = 16, 12, 2


def features(layers=3, training=False, step=0, seed=0):
    """Images of three sizes as a tower could give them; attention is far from uniform."""
    torch.manual_seed(seed)
    images, cells = len(GRIDS), sum(h * w for h, w in GRIDS)
    return VisualFeatures(
        tokens=torch.randn(cells, C),
        grids=GRIDS,
        layers=torch.randn(cells, layers, C),
        cls=torch.randn(images, C),
        query=3 * torch.randn(images, C),
        keys=torch.randn(cells + images, C),
        heads=HEADS,
        context=ImageContext(
            tuple(torch.randn(3 + i, D) for i in range(images)),
            np.arange(images, dtype=np.uint64) + np.uint64(5),
            training=training,
            step=step,
        ),
    )


def one_by_one(given):
    """(tokens, keys with CLS's first, CLS's query, CLS, layers) of each image."""
    cells = [h * w for h, w in given.grids]
    return zip(
        given.tokens.split(cells),
        given.keys.split([1 + n for n in cells]),
        given.query,
        given.cls,
        given.layers.split(cells),
        strict=True,
    )


def build(name, **arguments):
    torch.manual_seed(1)
    sizes = {"input_size": C, "output_size": D, "grid": (4, 5)}
    projector = projectors.build(name, **arguments, **sizes).eval()
    projector.heads = HEADS
    return projector


def check(projector, given, expected):
    """Rows of every image, before the MLP, and their number."""
    made = projector(given)
    for rows, grid, wanted in zip(made.per_image(), made.grids, expected, strict=True):
        assert grid[0] * grid[1] == len(wanted)
        torch.testing.assert_close(rows, projector.layers(wanted))
    return made


def attention_of_cls(query, keys, heads):
    """`[heads, n]`, one head and one key after the other."""
    size = len(query) // heads
    rows = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = torch.stack([query[part] @ key[part] / math.sqrt(size) for key in keys])
        rows.append(scores.softmax(0)[1:])
    return torch.stack(rows)


def test_random_keeps_those_of_the_smallest_numbers_and_every_cell_alike():
    projector = build("random", keep=0.4)
    given = features()
    expected = []
    for i, (tokens, *_) in enumerate(one_by_one(given)):
        numbers = given.context.of_cells(i, len(tokens))
        places = sorted(range(len(tokens)), key=lambda p, numbers=numbers: numbers[p])
        expected.append(tokens[sorted(places[: max(1, round(0.4 * len(tokens)))])])
    check(projector, given, expected)
    kept = np.zeros(20)
    for step in range(150):
        owner = projector(features(step=step)).owners[0]
        kept += owner >= 0
    assert kept.sum() == 150 * 8
    assert abs(kept / 150 - 0.4).max() < 0.16  # four standard deviations


def test_divprune():
    projector = build("divprune", keep=0.4)
    given = features()
    expected = []
    for tokens, *_ in one_by_one(given):
        rows = projector.layers(tokens).detach()
        n = len(rows)
        apart = [[1 - float(F.cosine_similarity(a, b, dim=0)) for b in rows] for a in rows]
        first = [min(apart[i][j] for j in range(n) if j != i) for i in range(n)]
        picked = [max(range(n), key=first.__getitem__)]
        while len(picked) < max(1, round(0.4 * n)):
            rest = [i for i in range(n) if i not in picked]
            picked.append(max(rest, key=lambda i: min(apart[i][j] for j in picked)))
        expected.append(rows[sorted(picked)])
    for rows, wanted in zip(projector(given).per_image(), expected, strict=True):
        torch.testing.assert_close(rows, wanted)


def test_divprune_takes_no_token_twice():
    given = VisualFeatures(torch.ones(20, C), ((4, 5),))
    (owner,) = build("divprune", keep=0.5)(given).owners
    assert sorted(owner[owner >= 0]) == list(range(10))


@pytest.mark.parametrize("numbers", [(5, 3), (1, 2), (4, 0), (50, 5)])
def test_visionzip(numbers):
    projector = build("visionzip", dominant=numbers[0], contextual=numbers[1])
    given = features()
    expected, owners = [], []
    for tokens, keys, query, cls, _ in one_by_one(given):
        n = len(tokens)
        dominant = min(numbers[0], n + 1)
        contextual = min(numbers[1], n + 1 - dominant)
        seen = attention_of_cls(query, keys, HEADS).sum(0)
        top = sorted(sorted(range(n), key=lambda i, seen=seen: -seen[i])[: dominant - 1])
        rest = [i for i in range(n) if i not in top]
        step = max(1, len(rest) // contextual) if contextual else 1
        anchors = rest[::step][:contextual]
        mean = keys[1:].view(n, HEADS, -1).mean(1)
        owner = [-1] * n
        for row, i in enumerate(top):
            owner[i] = 1 + row
        groups = {a: [] for a in anchors}
        for i in rest:
            if anchors:
                near = [float(F.cosine_similarity(mean[i], mean[a], dim=0)) for a in anchors]
                anchor = i if i in anchors else anchors[int(np.argmax(near))]
                owner[i] = dominant + anchors.index(anchor)
                if i != anchor:
                    groups[anchor].append(tokens[i])
        merged = [tokens[a] + (sum(g) / len(g) if g else 0) for a, g in groups.items()]
        expected.append(torch.stack([cls, *(tokens[i] for i in top), *merged]))
        owners.append(owner)
    made = check(projector, given, expected)
    assert [list(owner) for owner in made.owners] == owners


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
@pytest.mark.parametrize("keep", [None, 0.5])
def test_prumerge(name, keep):
    projector = build(name, keep=keep, neighbours=3)
    given = features(seed=4)
    expected, owners, found = [], [], 0
    for tokens, keys, query, *_ in one_by_one(given):
        n = len(tokens)
        seen = attention_of_cls(query, keys, 1)[0]
        order = sorted(range(n), key=lambda i, seen=seen: -seen[i])
        low, high = np.percentile(seen.numpy(), [25, 75])
        count = sum(float(a) > high + 1.5 * (high - low) for a in seen)
        found += count
        if keep is not None:
            total = max(1, round(keep * n)) - 1
            count = total if name == "prumerge" else (total + 1) // 2
        kept = order[:count]
        if name == "prumerge_plus" and keep is not None:
            others = sorted(order[count:])
            spaced = total - count
            kept = kept + [others[i * len(others) // spaced] for i in range(spaced)]
        elif name == "prumerge_plus" and count:
            kept = kept + [i for i in range(0, n - 1, max(1, n // count // 3)) if i not in kept]
        rows = []
        for i in kept:
            others = [j for j in range(n) if j != i]
            others.sort(key=lambda j, i=i: -float(F.cosine_similarity(keys[1 + i], keys[1 + j], 0)))
            rows.append(tokens[i] + sum(seen[j] * tokens[j] for j in others[:3]))
        rest = [i for i in range(n) if i not in kept]
        rows.append(sum((seen[i] * tokens[i] for i in rest), torch.zeros(C)))
        expected.append(torch.stack(rows))
        owners.append([kept.index(i) if i in kept else len(kept) for i in range(n)])
    assert found > 2  # there is something to keep
    made = check(projector, given, expected)
    assert [list(owner) for owner in made.owners] == owners


def test_downsample_is_an_mlp_on_smaller_images():
    model, plain = make_model(projector={"name": "downsample", "keep": 0.3}), make_model()
    plain.load_state_dict(model.state_dict())
    samples = make_samples([0, 1, 2])
    smaller = []
    for ids, labels, images in samples:
        own = []
        for image in images:
            size = [4 * round(side / 4 * math.sqrt(0.3)) for side in image.shape[1:]]
            own.append(F.interpolate(image[None], size, mode="bicubic", antialias=True)[0])
        smaller.append((ids, labels, own))
    got, expected = model(**collate(samples)), plain(**collate(smaller))
    torch.testing.assert_close(got.logits, expected.logits)
    assert got.trace.grids == expected.trace.tower_grids
    assert got.trace.base_rows == (16, 8 + 15, 0)


@pytest.mark.parametrize("keep", [None, 0.5])
def test_pooled_tells_which_cells_a_row_holds(keep):
    projector = build("pooled", keep=keep, reduce="avg")
    made = projector(features())
    for grid, after, owner in zip(GRIDS, made.grids, made.owners, strict=True):
        assert after == projector.grid_after(grid)
        assert set(owner) == set(range(after[0] * after[1]))
        for row in range(after[0] * after[1]):
            rows, columns = np.divmod(np.flatnonzero(owner == row), grid[1])
            block = (1 + np.ptp(rows)) * (1 + np.ptp(columns))
            assert len(rows) == block <= 4  # neighbours


def cells_of_regions(grid, side):
    """The cells of each region of a grid, region by region."""
    height, width = grid
    return [
        [r * width + c for r in range(top, min(top + side, height)) for c in range(left, end)]
        for top in range(0, height, side)
        for left in range(0, width, side)
        for end in [min(left + side, width)]
    ]


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
def test_matryoshka_training_draws_every_size_alike_and_one_for_all_of_a_step(name):
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
    """One query `[C]` of an `nn.MultiheadAttention`, head by head."""
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
    """One row per region, by hand."""
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


@pytest.mark.parametrize("scale", [2, 4])
def test_query_conv(scale):
    projector = build("query_conv", scale=scale, levels=[0, 0.5, 1])
    given = features()
    weight, bias = projector.convolution.weight[:, 0], projector.convolution.bias
    expected = []
    for i, ((tokens, *_, layers), grid) in enumerate(zip(one_by_one(given), GRIDS, strict=True)):
        text = given.context.instructions[i]
        asked = projector.queries(tokens + projector.question(sum(text) / len(text)))
        queries = []
        for cells in cells_of_regions(grid, scale):
            rows, columns = zip(*(divmod(cell, grid[1]) for cell in cells), strict=True)
            taps = weight[:, [r % scale for r in rows], [c % scale for c in columns]]  # [C, cells]
            queries.append((taps * asked[cells].T).sum(1) * scale**2 / len(cells) + bias)
        expected.append(regions_of_image(projector, queries, layers, grid))
    check(projector, given, expected)


def test_query_conv_depends_on_the_question_and_never_on_answers():
    model = make_model(projector={"name": "query_conv", "scale": 2}, seed=3)
    seen = []
    model.projector.register_forward_hook(lambda *x: seen.append(x[2].tokens))
    ids, labels, images = make_samples([0])[0]
    answer, question = ids.clone(), ids.clone()
    answer[labels != -100] = 7
    question[3] = 7
    for changed in (ids, answer, question):
        model(**collate([(changed, labels, images)]))
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], atol=1e-4)


def test_token_packer_starts_small_in_a_model():
    layers = make_model(projector={"name": "token_packer"}).projector.layers
    assert float(layers[2].weight.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert not layers[0].bias.any()


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


@pytest.mark.parametrize("kind", ["sti", "sci", "dci"])
def test_dense_connector(kind):
    projector = build("dense_connector", kind=kind)
    given = features(layers=24 if kind == "dci" else 2)
    assert [round(24 * share) for share in projector.needs.layers] == (
        list(range(24)) if kind == "dci" else [7, 15]
    )
    expected = []
    for tokens, *_, layers in one_by_one(given):
        rows = list(tokens)
        if kind == "sti":
            for state in (0, 1):
                runs = range(0, len(tokens), 8)
                rows += [layers[start : start + 8, state].mean(0) for start in runs]
        elif kind == "sci":
            rows = [torch.cat([r, s[0], s[1]]) for r, s in zip(rows, layers, strict=True)]
        else:
            means = [(s[:12].mean(0), s[12:].mean(0)) for s in layers]
            rows = [torch.cat([r, *m]) for r, m in zip(rows, means, strict=True)]
        expected.append(torch.stack(rows))
    check(projector, given, expected)
