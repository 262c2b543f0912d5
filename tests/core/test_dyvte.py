"""Labels and training of exit gates, against passes with other routers."""

import pytest
import torch
import torch.nn.functional as F

from dpn import losses

from .conftest import collate, make_model, make_samples

ROUTER = {"name": "dyvte", "hidden": 8}


def passes(model, batch, loss, step):
    """Return the trace that a training step makes for the loss."""
    model.train()
    trace = model(**batch, step=step).trace
    with torch.no_grad():
        trace.probe = model(**batch, step=step, router=loss.probe(0, step)).trace
    return trace


def step_of(loss, layer):
    """Return a step for which the loss draws a layer."""
    return next(s for s in range(100) if loss.probe(0, s).strength == layer + 1)


def answers(model, batch, router):
    """Return greedy tokens and loss of each answer from all logits of a model with some router."""
    other = make_model(router).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    logits = other(**batch).logits
    found = []
    for row, labels in zip(logits, batch["labels"], strict=True):
        places = (labels[1:] != -100).nonzero()[:, 0]
        found.append((row[places].argmax(-1), F.cross_entropy(row[places], labels[places + 1])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_an_exit_is_correct_if_the_answer_stays_and_its_loss_hardly_rises(layer):
    model, batch = make_model(ROUTER, seed=3), collate(make_samples(seed=5))
    for weight in (0.01, 1.0):  # if the model hardly uses images, exits are correct
        for layers in model.language.layers[layer + 1 :]:
            layers.self_attn.v_proj.weight.mul_(weight)
        loss = losses.build("exit", router=model.router)
        step = step_of(loss, layer)
        trace = passes(model, batch, loss, step)
        whole = answers(model, batch, {"name": "none"})
        left = answers(model, batch, {"name": "vtw", "k": layer + 1})
        expected = {}
        for b, ((tokens, own), (fewer, without)) in enumerate(zip(whole, left, strict=True)):
            same = sum(int(x == y) for x, y in zip(tokens, fewer, strict=True)) / len(tokens)
            expected[b] = int(same > 0.99 and float(without) < 1.03 * float(own))
        found = loss.labels(trace)
        assert {b: int(label) for b, label in found.items()} == expected
        decision = trace.decisions[layer]
        each = [-decision.probs[i, expected[b]].log() for i, b in enumerate(decision.samples)]
        torch.testing.assert_close(loss(trace), sum(each) / len(each))


def test_both_kinds_of_labels_occur():
    model, batch = make_model(ROUTER, seed=3), collate(make_samples(seed=5))
    loss = losses.build("exit", agreement=0.5, margin=1.2, router=model.router)
    steps = [step_of(loss, layer) for layer in range(3)]
    labels = [loss.labels(passes(model, batch, loss, step)) for step in steps]
    assert {int(label) for found in labels for label in found.values()} == {0, 1}


def test_a_step_trains_the_gate_of_its_layer_alone():
    model = make_model(ROUTER, seed=3)
    loss = losses.build("exit", router=model.router)
    drawn = set()
    for step in range(12):
        model.zero_grad()
        loss(passes(model, collate(make_samples()), loss, step)).backward()
        grads = {n[:14]: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert len(grads) == 3
        (name,) = (n for n, grad in grads.items() if grad.abs().max())
        drawn.add(name)
    assert drawn == {"router.gates.0", "router.gates.1", "router.gates.2"}


def test_no_sample_exits_in_training():
    model, batch = make_model(ROUTER, seed=3), collate(make_samples())
    assert model(**batch).trace.visual_rows[3] == (0, 0, 0, 0, 0)
    assert model.train()(**batch).trace.visual_rows[3] == (16, 23, 0, 16, 14)


def test_price_is_a_bias_towards_the_exit():
    model = make_model(ROUTER, seed=3)
    logits = {}
    for layer, gate in model.router.gates.items():
        gate.register_forward_hook(lambda *args, layer=layer: logits.update({layer: args[2]}))
    model.router.price.fill_(-0.5)
    chosen = []
    for decision in model(**collate(make_samples())).trace.decisions:
        wanted = (logits[str(decision.layer)] + torch.tensor([0.0, -0.5])).softmax(-1)
        torch.testing.assert_close(decision.probs, wanted)
        assert decision.experts.tolist() == wanted.argmax(-1).tolist()
        chosen += decision.experts.tolist()
    assert {*chosen} == {0, 1}


def test_a_batch_without_images_has_a_connected_zero():
    model = make_model(ROUTER, seed=3)
    loss = losses.build("exit", router=model.router)
    value = loss(passes(model, collate(make_samples([2])), loss, 0))
    value.backward()
    gates = [p.grad for p in model.router.parameters() if p.grad is not None]
    assert value == 0
    assert len(gates) == 6
    assert all((g == 0).all() for g in gates)


def test_a_sample_without_answer_has_no_label():
    model = make_model(ROUTER, seed=3)
    loss = losses.build("exit", router=model.router)
    batch = collate(make_samples())
    batch["labels"][1] = -100
    trace = passes(model, batch, loss, 0)
    assert sorted(loss.labels(trace)) == [0, 2, 3, 4]
    assert loss(trace).isfinite()
    with pytest.raises(ValueError, match="pass labels"):
        loss.labels(model(**batch).trace)
