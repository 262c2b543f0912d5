"""Passes on fake tensors against passes on real ones."""

import pytest
import torch
from transformers import LlamaConfig

from dpn import DPNConfig, DPNForConditionalGeneration
from dpn.measure.dry_run import cost_of, fixed, make_batch, supervised_columns, training_step
from dpn.metrics.memory import peak_bytes
from dpn.model import meta_model

from .conftest import collate, make_model, make_samples, without

TEXT = 20


def config_of(router=None, layers=3):
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    return DPNConfig(
        text_config=text.to_dict(),
        vision_config={"name": "vit", "image_size": 32, "width": 16, "depth": 1, "heads": 2},
        router_config=router or {"name": "none"},
        image_token_id=62,
        router_token_id=63,
    )


def saved_for_backward(model, batch):
    """Return the bytes that autograd saves, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = model(**batch)  # kept alive, so that no address is reused
    assert kept.loss.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


def test_saved_bytes_of_a_layer_equal_those_of_autograd():
    saved = {}
    for layers in (2, 3):
        model = DPNForConditionalGeneration(config_of(layers=layers)).train()
        saved[layers] = saved_for_backward(model, make_batch(model, 2, TEXT))
    step = training_step(meta_model(config_of()), 2, TEXT)
    each = saved[3] - saved[2]
    given = 2 * (TEXT + 16) * 32 * 4  # output of the last layer, which no norm of all rows saves
    assert step.saved_by_layer == (each, each, each - given)


@pytest.mark.slow
def test_a_checkpointed_layer_saves_the_rows_of_the_next():
    model = meta_model(config_of({"name": "static", "layers": [0], "kernels": [2, 2]}))
    model.checkpoint_layers = True
    rows = TEXT + 4  # 4 rows remain of 4 x 4 patches
    by_layer = training_step(model, 2, TEXT).saved_by_layer
    assert by_layer[1] == 2 * rows * 32 * 4  # samples, width, fp32
    assert by_layer[0] > by_layer[1]  # pooling saves more


def test_the_peak_equals_that_of_real_tensors():
    config = config_of({"name": "static", "layers": [0]})
    real = DPNForConditionalGeneration(config).train()
    batch = make_batch(real, 2, TEXT)
    weights = list(real.parameters())
    step = training_step(meta_model(config), 2, TEXT)

    def run():
        real(**batch).loss.backward()

    for weight in weights:  # as in the dry run
        weight.register_post_accumulate_grad_hook(lambda w: setattr(w, "grad", None))
    held = sum(weight.nbytes for weight in weights)
    assert peak_bytes(run, weights) - held == pytest.approx(sum(step.peak.values()), rel=0.02)


@pytest.mark.slow
def test_the_model_is_left_unchanged():
    model = meta_model(config_of({"name": "dpe", "min_rows": 1})).eval()
    router = model.router
    training_step(model, 1, TEXT, "fewest")
    assert model.router is router
    assert not model.training
    assert all(p.is_meta for p in model.parameters())


def test_rows_that_nothing_drops_are_not_copied():
    model = meta_model(config_of({"name": "vtw", "k": 1}))  # reads no data
    most, own = (training_step(model, 2, TEXT, rows) for rows in ("most", "own"))
    assert most.saved_by_layer == pytest.approx(own.saved_by_layer, rel=1e-3)


def test_answers_have_the_requested_length():
    model = meta_model(config_of())
    for text, answer in ((3, 1), (4, 2), (9, 4), (64, 32)):
        labels = make_batch(model, 1, text)["labels"]
        assert int((labels != -100).sum()) == supervised_columns(text) == answer


def test_costs_of_a_route():
    dpe = config_of({"name": "dpe", "layers": [0, 1], "min_rows": 1})
    rows = {
        str(route): [layer.cached_rows - TEXT for layer in cost_of(dpe, TEXT, route).layers]
        for route in ("most", "fewest", [[1, 2], [2, 2]])
    }
    assert list(rows.values()) == [[16, 16, 16], [16, 4, 1], [16, 8, 2]]


@pytest.mark.parametrize("name", ["dpe", "static", "random"])
def test_a_forced_route_is_taken(name):
    kernels = [[[1, 1], [1, 2], [2, 2]]] * 2 if name != "static" else [2, 2]
    model = make_model({"name": name, "layers": [0, 2], "kernels": kernels, "min_rows": 1})
    own = model.router
    model.router = fixed(own, [[[2, 2], [1, 1]], [2, 2]])
    batch = without(collate(make_samples([0, 2, 3])), "labels")
    trace = model(**batch).trace
    # The second sample has no image; the third has an even index, so it takes the first kernel.
    assert trace.visual_rows == [(16, 0, 16), (4, 0, 4), (4, 0, 4), (1, 0, 1)]
    model.router = fixed(own, [[[1, 1], [2, 2]], [1, 1]])
    assert model(**batch).trace.visual_rows[-1] == (16, 0, 16)
    assert fixed(own, "own") is own


def test_gates_run_on_a_forced_route():
    """Gates run so that their cost is timed; forcing their own route changes no result."""
    model = make_model({"name": "dpe", "layers": [0, 2], "min_rows": 1})
    batch = without(collate(make_samples([0])), "labels")
    own = model(**batch)
    kernels = [
        model.router.plan.kernels[i][d.experts[0]] for i, d in enumerate(own.trace.decisions)
    ]
    model.router = fixed(model.router, [list(kernel) for kernel in kernels])
    forced = model(**batch)
    assert torch.equal(forced.logits, own.logits)
    assert torch.equal(forced.trace.decisions[0].probs, own.trace.decisions[0].probs)


@pytest.mark.parametrize(
    ("name", "route", "problem"),
    [
        ("dpe", [[2, 2]], "has 1 kernels; the router chooses one at 2 layers"),
        ("dpe", [[2, 2], [3, 3]], r"has kernel \(3, 3\)"),
        ("dpe", [2, 2], "2 is neither a kernel"),
        ("none", [[2, 2]], "picks no kernels"),
    ],
)
def test_an_impossible_route_is_refused(name, route, problem):
    router = make_model({"name": name, **({"layers": [0, 2]} if name == "dpe" else {})}).router
    with pytest.raises(ValueError, match=problem):
        fixed(router, route)
