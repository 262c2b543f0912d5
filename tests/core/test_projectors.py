"""Methods that choose, merge or join the tower's tokens, each against a naive statement of its
rule: plain loops over one image.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpn import projectors
from dpn.vision import VisualFeatures

from .conftest import collate, make_model, make_samples
from .features import GRIDS, HEADS, C, build, check, features, one_by_one


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
        numbers = given.context.draw_for_cells(i, len(tokens))
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


@pytest.mark.parametrize(
    ("name", "share", "is_near"),
    [
        ("downsample", (17 / 24) ** 2, True),
        ("matryoshka_pool", 0.25, False),
        ("token_packer", 0.25, False),
        ("query_conv", 0.25, False),
        ("matryoshka_query", 256 / 576, True),  # all of its queries
    ],
)
def test_what_is_nearest_to_half_of_the_tokens_of_llava(name, share, is_near):
    with torch.device("meta"):
        sizes = {"input_size": 32, "output_size": 32, "grid": (24, 24)}
        projector = projectors.build(name, keep=0.5, **sizes)
        height, width = projector.grid_after((24, 24))
        assert height * width / 576 == pytest.approx(share)
        assert (projector.check() == []) == is_near
