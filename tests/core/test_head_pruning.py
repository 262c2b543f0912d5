"""Scores of heads against the released vote, by loops over the stock model's attention maps."""

import json
from itertools import pairwise

import pytest
import torch

from dpn import routers
from dpn.cost import TextShape, Unreachable
from dpn.routers import head_pruning

from .conftest import IMAGE, collate, make_model, make_samples, without
from .eager import Eager

LLAVA = TextShape(32, 4096, 4096, 11008, kv_heads=32)
TINY = TextShape(4, 32, 16, 48, kv_heads=2)


def ratios_by_hand(model, ids, labels, images):
    """Return the attention of the instruction's text on visual keys over that on text keys,
    [layers][heads].
    """
    eager = Eager(model, "renumber")
    eager.start(ids, images)
    end = int((labels != -100).nonzero()[0])
    found = []
    for layer in range(4):
        eager.hidden, attention = eager.run(layer)
        asked = [i for i, (c, cell, _) in enumerate(eager.rows) if cell is None and c < end]
        found.append([])
        for head in attention:
            visual = text = 0.0
            for i in asked:
                for j, (_, cell, _) in enumerate(eager.rows):
                    visual += float(head[i, j]) * (cell is not None)
                    text += float(head[i, j]) * (cell is None)
            found[-1].append(visual / text)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_score_gives_the_vote_at_every_threshold(side):
    model = make_model({"name": "static"}, seed=5)
    samples = [s for seed in (1, 2) for s in make_samples(seed=seed)]
    batches = [collate(samples[:5], side), collate(samples[5:], side)]
    ends = [(b["labels"] != -100).long().argmax(1) for b in batches]
    scores = head_pruning.HeadPruningRouter.search(
        model,
        [without(b, "labels") | {"instruction_end": e} for b, e in zip(batches, ends, strict=True)],
    )["scores"]
    ratios = [ratios_by_hand(model, *s) for s in samples if (s[0] == IMAGE).any()]
    assert len(ratios) == 8
    for layer in range(4):
        every = sorted(r for ratio in ratios for r in ratio[layer])
        for one, other in pairwise(every):
            threshold = (one + other) / 2
            if other - one < 1e-6:
                continue
            votes = [sum(r[layer][h] > threshold for r in ratios) for h in range(4)]
            active = [v > 0.4 * len(ratios) for v in votes]
            groups = [active[0] or active[1], active[2] or active[3]]
            assert groups == [score > threshold for score in scores[layer]]


def test_the_vote_of_a_hundred_samples():
    ratios = torch.arange(1.0, 101.0)[torch.randperm(100), None]
    (score,) = head_pruning.scores_of(ratios, kv_heads=1)
    assert score == 60  # above 59.5 are 41 samples, above 60 are 40


def test_first_layers_keep_every_head():
    scores = [[0.0, 0.1]] * 4
    for kept in (0, 2):
        router = head_pruning.HeadPruningRouter(
            scores, threshold=0.05, keep_layers=kept, text=TINY, grid=(4, 4)
        )
        heads = [plan and plan.heads for plan in router.plans]
        assert heads == [None] * kept + [(1,)] * (4 - kept)


@pytest.mark.parametrize("keep", [0.75, 0.85, 0.95])
def test_a_threshold_is_found_that_meets_keep(keep):
    scores = torch.rand(32, 32).tolist()
    router = head_pruning.HeadPruningRouter(scores, keep=keep, text=LLAVA, grid=(24, 24))
    assert router.check() == []
    left = sum(len(plan.heads) if plan else 32 for plan in router.plans)
    # Keys of all heads and the FFN remain: 576 d^2 and 3 * 576 d m in each layer.
    n, d, m = 576, 4096, 11008
    by_heads = 3 * n * d * d + 2 * n * n * d
    whole = 32 * (n * d * d + 3 * n * d * m + by_heads)
    share = 1 - by_heads * (1024 - left) / 32 / whole
    assert share == pytest.approx(keep, abs=1e-3)


WRONG = {
    "layers": ([[0.1, 0.2]] * 3, "has 3 layers of 2 heads; this decoder has 4 layers of 2"),
    "heads": ([[0.1], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2]], "4 layers of 1, 2 heads"),
    "no lists": ({"a": 1}, "has 0 layers of no heads"),
    "infinite": ([[0.1, float("inf")]] * 4, "holds inf in layer 0"),
    "words": ([[0.1, 0.2]] * 3 + [[0.1, "a"]], "holds a in layer 3"),
    "missing": (None, "python tools/search.py run=RUN router=head_pruning"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_unsuitable_scores_are_refused_with_one_sentence(kind, tmp_path):
    scores, sentence = WRONG[kind]
    if scores is not None:
        path = tmp_path / "head_scores.json"
        path.write_text(json.dumps({"layers": scores}))
        scores = str(path)
    (problem,) = routers.build("head_pruning", scores=scores, text=TINY, grid=(4, 4)).check()
    assert sentence in problem
    assert "python tools/search.py run=RUN router=head_pruning" in problem


def test_missing_scores_are_refused():
    for keep, kind in ((None, str), (0.5, Unreachable)):
        router = routers.build("head_pruning", keep=keep, text=TINY, grid=(4, 4))
        assert [type(problem) for problem in router.check()] == [kind]


@pytest.mark.parametrize("content", [None, "not json", "[1]", '{"heads": []}'])
def test_an_invalid_file_is_refused(content, tmp_path):
    path = tmp_path / "head_scores.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"make it( again)? with `python tools/search.py"):
        routers.build("head_pruning", scores=str(path), text=TINY, grid=(4, 4))


def test_a_chain_settles_its_members(tmp_path):
    path = tmp_path / "head_scores.json"
    path.write_text(json.dumps({"layers": [[0.1, 0.2]] * 4}))
    section = {"name": "chain", "routers": [{"name": "head_pruning", "scores": str(path)}]}
    assert routers.inline_files(section)["routers"][0]["scores"] == [[0.1, 0.2]] * 4
