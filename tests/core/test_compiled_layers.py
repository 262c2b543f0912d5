"""Compiled layers give the same results for any number of rows."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from dpn.decoder.layer import compile_layers

from .conftest import collate, make_model, make_samples

pytestmark = pytest.mark.xdist_group("compiled")  # compiled code of the first test is reused

#: The second layer gets other numbers of rows than the first.
ROUTER = {"name": "dpe", "layers": [0], "min_rows": 1}


def reset():
    torch.compiler.reset()
    counters.clear()


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_compiled_layers_give_the_same_gradients(checkpoint):
    reset()
    plain = make_model(ROUTER, seed=3, layers=2)
    compiled = copy.deepcopy(plain)
    compile_layers(compiled.language)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    compiled.checkpoint_layers = checkpoint
    for which in ([0, 1, 2, 3, 4], [2, 3], [4, 1]):
        found = []
        for model in (plain, compiled):
            model.train().zero_grad()
            loss = model(**collate(make_samples(which))).loss
            loss.backward()
            found.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
        assert len(found[0]) == len(found[1]) > 20
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] > 0  # otherwise nothing was compiled


@pytest.mark.slow
def test_compiled_layers_generate_the_same_answers():
    reset()
    model = make_model(ROUTER, seed=3, layers=2)
    batch = {k: v for k, v in collate(make_samples(), "left").items() if k != "labels"}
    answers = []
    for _ in range(2):
        answers.append(model.generate(**batch, max_new_tokens=6, do_sample=False))
        compile_layers(model.language)
    assert torch.equal(*answers)
    assert counters["stats"]["unique_graphs"] > 0
