"""Layers that RedundancyLens reduces; test_within tests what reduced layers compute."""

import json

import pytest
import torch
import torch.nn.functional as F

from dpn import routers
from dpn.cost import TextShape
from dpn.routers.base import Router
from dpn.routers.redundancy_lens import rank_layers
from dpn.tokens import LayerPlan

from .conftest import collate, make_model, make_samples, without

TINY = TextShape(4, 32, 16, 50, kv_heads=2)
HOLLOW = LayerPlan(window=256)
SPARSE = LayerPlan(ffn=10, probe=10)
BOTH = LayerPlan(window=256, ffn=10, probe=10)


def lens(**arguments):
    return routers.build("redundancy_lens", **arguments, text=TINY, grid=(4, 4))


def test_the_first_layers_of_each_ranking_are_reduced():
    ranking = {"attention": [2, 0, 1, 3], "ffn": [1, 2, 3, 0]}
    assert lens(ranking=ranking, reduced=0).plans == [None] * 4
    assert lens(ranking=ranking, reduced=1).plans == [None, SPARSE, HOLLOW, None]
    assert lens(ranking=ranking).plans == [HOLLOW, SPARSE, BOTH, None]
    assert lens(ranking=ranking, reduced=4).plans == [BOTH] * 4
    assert lens().plans == [None, None, BOTH, BOTH]


class Fixed(Router):
    """Reduces the given layers."""

    def within(self, layer, tokens, context):
        return LayerPlan(ffn=1) if layer in self.reduced else None


def predicted(model, batch, reduced):
    model.router = Fixed(text=model.router.text, grid=model.router.grid)
    model.router.reduced = reduced
    return model(**batch, logits_to_keep=1).logits[:, -1].log_softmax(-1)


@torch.no_grad()
def test_layers_are_ranked_by_a_greedy_search():
    model = make_model({"name": "static"}, seed=4)
    batches = [without(collate(make_samples(which)), "labels") for which in ([0, 1], [3, 4])]
    ranking = rank_layers(model, batches, LayerPlan(ffn=1))
    chosen = []
    while len(chosen) < 4:
        change = {}
        for layer in set(range(4)) - set(chosen):
            change[layer] = 0.0
            for batch in batches:
                whole = predicted(model, batch, [])
                part = predicted(model, batch, [*chosen, layer])
                change[layer] += float(F.kl_div(whole, part, reduction="sum", log_target=True))
        chosen.append(min(change, key=change.get))
    assert ranking == chosen
    assert ranking != sorted(ranking)


def test_a_file_is_read_and_saved_as_numbers(tmp_path):
    path, ranking = tmp_path / "ranking.json", {"attention": [2, 0, 1, 3], "ffn": [1, 2, 3, 0]}
    path.write_text(json.dumps(ranking))
    section = {"name": "redundancy_lens", "ranking": str(path)}
    assert lens(ranking=str(path)).ranking == ranking
    assert routers.inline_files(section) == {"name": "redundancy_lens", "ranking": ranking}
    path.write_text('{"attention": [1]}')
    for bad in (str(path), str(tmp_path / "none.json")):
        with pytest.raises(ValueError, match=r"tools/search.py run=RUN router=redundancy_lens"):
            lens(ranking=bad)


WRONG = {
    "router.ranking.ffn=[0, 1, 2, 2] must name each": {
        "ranking": {"attention": [0, 1, 2, 3], "ffn": [0, 1, 2, 2]}
    },
    "own parameter is 5; it must be from 0.0 to 4.0": {"reduced": 5},
    "router.window=-1 must be 0 or larger": {"window": -1},
    "router.ratio=1.5 must be larger than 0": {"ratio": 1.5},
    "router.probe=0 must be at least 1": {"probe": 0},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_invalid_arguments_are_refused_with_one_sentence(sentence):
    (problem,) = lens(**WRONG[sentence]).check()
    assert sentence in problem
