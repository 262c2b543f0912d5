"""Rows that skip layers, against one sample at a time on the modules of a stock model."""

import math

import pytest
import torch

from dpn import cost, losses, routers
from dpn.cost import TextShape
from dpn.tokens import LayerPlan, RowDecision, Trace

from .conftest import collate, make_model, make_samples, without
from .eager import Eager
from .test_cost import count

LLAVA = TextShape(32, 4096, 4096, 11008)
#: Without training, about half of the rows are above this threshold.
ROUTER = {"name": "depth_routing", "layers": [1, 2], "threshold": 0.5, "capacity": 0.4}


def naive_layer(eager, index, training, gate=None, units=48):
    """Run a layer on the rows that take part; return the number of visual rows among them.

    At layers that rows may skip, visual rows use the first `units` hidden units of the FFN.
    """
    gate = eager.model.router.gate if gate is None else gate
    layer = eager.stock.model.layers[index]
    n, factor = len(eager.rows), torch.ones(len(eager.rows))
    takes = set(range(n))
    if index in ROUTER["layers"]:
        scale = eager.hidden.pow(2).mean(1, keepdim=True).add(1e-6).sqrt()
        logits = eager.hidden / scale @ gate.T
        p = 1 / (1 + (logits[:, 0] - logits[:, 1]).exp())
        for image in eager.images().values():
            if training:
                best = sorted(image, key=lambda i: -float(p[i]))[: math.ceil(len(image) * 0.4)]
            else:
                best = [i for i in image if p[i] > 0.5]
            takes -= set(image) - set(best)
            factor = factor.index_copy(0, torch.tensor(image), p[image])
    rows = sorted(takes)
    places = [eager.rows[i][2] for i in rows] if eager.positions == "keep" else range(len(rows))
    rotary = eager.stock.model.rotary_emb(eager.hidden[None], torch.tensor(list(places))[None])
    mask = torch.full((len(rows), len(rows)), -1e30).triu(1)[None, None]
    hidden = eager.hidden[rows][None]
    normed = layer.input_layernorm(hidden)
    hidden = hidden + layer.self_attn(normed, position_embeddings=rotary, attention_mask=mask)[0]
    normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
    inner = mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)
    if index in ROUTER["layers"]:
        inner[:, [eager.rows[i][1] is not None for i in rows], units:] = 0
    out = mlp.down_proj(inner) * factor[rows][:, None]
    new = dict(zip(rows, (hidden + out)[0], strict=True))
    eager.hidden = torch.stack([new.get(i, eager.hidden[i]) for i in range(n)])
    return sum(eager.rows[i][1] is not None for i in rows)


@pytest.mark.parametrize("positions", ["renumber", "keep"])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_a_pack_equals_single_samples(positions, training):
    model = make_model({**ROUTER, "positions": positions}, seed=3).train(training)
    samples = make_samples()
    out = model(**collate(samples), return_logits=True)
    eager = Eager(model, positions)
    for b, (ids, _, images) in enumerate(samples):
        eager.start(ids, images)
        whole = len(eager.rows) - len(ids) + len(images)
        for index in range(4):
            assert naive_layer(eager, index, training) == out.trace.visual_rows[index][b]
        assert out.trace.visual_rows[0][b] == out.trace.visual_rows[3][b] == whole
        logits = torch.stack(eager.logits())
        torch.testing.assert_close(out.logits[b, : len(ids)], logits, atol=2e-5, rtol=1e-4)
    assert 0 < sum(out.trace.visual_rows[1]) < sum(out.trace.visual_rows[0])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_equal_those_of_single_samples(checkpoint):
    model, sample = make_model(ROUTER, seed=3).train(), make_samples([0])[0]
    model.checkpoint_layers = checkpoint
    towards = torch.randn(len(sample[0]), 50)
    logits = model(**collate([sample]), return_logits=True).logits[0]
    (logits * towards).sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    eager = Eager(model, "renumber")
    eager.start(sample[0], sample[2])
    for index in range(4):
        naive_layer(eager, index, training=True)
    (torch.stack(eager.logits()) * towards).sum().backward()
    gate = model.router.gate
    assert gate.grad.abs().max() > 1e-3
    torch.testing.assert_close(got["router.gate"], gate.grad, atol=1e-4, rtol=1e-3)
    for name, parameter in eager.stock.model.layers.named_parameters():
        torch.testing.assert_close(
            got[f"language.layers.{name}"], parameter.grad, atol=1e-4, rtol=1e-3, msg=name
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_appended_text_attends_to_the_rows_that_took_part(side):
    model, samples = make_model(ROUTER, seed=3), make_samples([0, 1, 4])
    batch = without(collate(samples, side), "labels")
    cache = model(**batch, use_cache=True).past_key_values
    assert len({int(stage.lengths[0]) for stage in cache.stage_of}) > 1
    more = torch.randint(3, 40, (3, 2))
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], 1)
    out = model(input_ids=more, attention_mask=mask, past_key_values=cache)
    for b, (ids, _, images) in enumerate(samples):
        whole = torch.cat([ids, more[b]])
        alone = model(**without(collate([(whole, whole, images)]), "labels")).logits[0, -2:]
        torch.testing.assert_close(out.logits[b], alone, atol=1e-5, rtol=1e-4)


def test_generating_equals_recomputing():
    model, samples = make_model(ROUTER, seed=3), make_samples([0, 1])
    ids, _, images = samples[1]
    batch = without(collate([(ids, ids, images)]), "labels")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**batch, **options)
    plain = model.generate(**batch, **options, use_cache=False)
    assert torch.equal(cached, plain)
    assert model.generate(**batch, **options, num_beams=3).shape == cached.shape


CHAIN = {"name": "chain", "routers": [ROUTER, {"name": "sparse_ffn", "layers": [1, 2]}]}


@pytest.mark.parametrize("router", [ROUTER, CHAIN], ids=lambda router: router["name"])
@pytest.mark.parametrize("which", [0, 1])
def test_flops_equal_the_counter(router, which):
    model = make_model(router, seed=3)
    model.attention = "segments"
    ids, _, images = make_samples([which])[0]
    batch = without(collate([(ids, ids, images)]), "labels")
    out, counted = count(lambda: model(**batch, logits_to_keep=1))
    rows = [sum(each) for each in out.trace.visual_rows]
    gates = 2 * 2 * 32 * rows[0] * 2  # two layers score all rows with two vectors of width 32
    expected = cost.prefill_flops(model, out.trace, [len(ids) - len(images)])
    assert expected == [counted - gates]
    assert rows[1] < rows[0]


def test_a_chain_combines_the_plans_of_its_members():
    model, samples = make_model(CHAIN, seed=3), make_samples()
    out, eager = model(**collate(samples)), Eager(model, "renumber")
    for b, (ids, _, images) in enumerate(samples):
        eager.start(ids, images)
        with torch.no_grad():
            rows = [
                naive_layer(eager, i, False, model.router.members[0].gate, 24) for i in range(4)
            ]
        assert rows == [each[b] for each in out.trace.visual_rows]
        logits = torch.stack(eager.logits())
        torch.testing.assert_close(out.logits[b, : len(ids)], logits, atol=2e-5, rtol=1e-4)


def test_plans_that_both_route_rows_are_refused():
    one, other = LayerPlan(rows=()), LayerPlan(radius=1, heads=(0,))
    assert one.joined(other) == other.joined(one) == LayerPlan(1, (0,), rows=())
    with pytest.raises(ValueError, match="let them act at different layers"):
        make_model({"name": "chain", "routers": [ROUTER, ROUTER]})(**collate(make_samples()))


def test_attention_to_rows_that_skipped_the_layer_is_refused():
    late = {"name": "fastv", "k": 2, "positions": "renumber"}
    with pytest.raises(ValueError, match="let them act after different layers"):
        make_model({"name": "chain", "routers": [ROUTER, late]})(**collate(make_samples()))
    after = {"name": "chain", "routers": [ROUTER, {**late, "k": 1}]}
    rows = make_model(after, seed=3)(**collate(make_samples())).trace.visual_rows
    assert rows[3][0] == 8 > rows[1][0]


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_keep_is_met_in_training_and_evaluation(keep):
    router = routers.build("depth_routing", keep=keep, text=LLAVA, grid=(24, 24))
    assert router.share(router.strength) == pytest.approx(keep, abs=2e-3)
    assert router.layers == tuple(range(3, 31))
    low = 4 / 32
    assert router.reach() == (low, 1.0)
    model = make_model({"name": "depth_routing", "keep": 0.6, "layers": [0, 2, 3]}, seed=3)
    for training in (True, False):
        trace = model.train(training)(**collate(make_samples())).trace
        text = TextShape.from_config(model.config.text_config)
        share = cost.visual_macs(trace, 0, text) / text.visual_macs([16] * 4)
        assert share == pytest.approx(0.6, abs=0.05)


def test_the_loss_equals_a_hand_computed_value():
    one = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]], requires_grad=True)
    two = torch.tensor([[1.0, 0.0]])
    trace = Trace((), ())
    trace.row_decisions += [
        RowDecision(1, one, torch.tensor([1, 0, 1])),
        RowDecision(2, two, torch.tensor([1])),
    ]
    loss = losses.build("depth", weight=0.5, router=make_model(ROUTER).router)
    means = [math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)) + math.log(2), 0]
    expected = 0.5 * (means[0] / 3 + math.log(1 + math.e))
    value = loss(trace)
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    assert (one.grad[:, 1].sign() == torch.tensor([-1, 1, -1])).all()
    assert loss(Trace((), ())) == 0


@pytest.mark.slow
def test_the_gate_learns_a_threshold_that_selects_the_same_rows():
    model = make_model({**ROUTER, "layers": [1]}, seed=3).train()
    loss = losses.build("depth", weight=1.0, router=model.router)
    optimizer = torch.optim.Adam(model.router.parameters(), lr=0.05)
    batch = collate(make_samples())
    values = []
    for _ in range(40):
        value = loss(model(**batch).trace)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.7 * values[0]
    picked = model(**batch).trace.visual_rows[1]
    found = model.eval()(**batch).trace.visual_rows[1]
    assert sum(abs(a - b) for a, b in zip(picked, found, strict=True)) <= 0.2 * sum(picked)


def test_a_batch_without_images_has_gradients_of_zero():
    model = make_model(ROUTER, seed=3).train()
    out = model(**collate(make_samples([2])))
    (out.loss + losses.build("depth", router=model.router)(out.trace)).backward()
    assert (model.router.gate.grad == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [32]}, "router.layers=[32] must lie between 0 and 31"),
        ({"threshold": 1.0}, "router.threshold=1.0 is a probability"),
        ({"keep": 0.1}, "only 0.12 to 1.00"),
    ],
)
def test_check_names_each_problem(arguments, message):
    router = routers.build("depth_routing", **arguments, text=LLAVA, grid=(24, 24))
    assert any(message in problem for problem in router.check())


def test_the_gate_computes_in_fp32_under_autocast():
    model, batch = make_model({**ROUTER, "layers": [0]}, seed=3), collate(make_samples())
    (plain,) = model(**batch).trace.row_decisions
    seen = model.router.within
    model.router.within = lambda layer, tokens, context: half(seen, layer, tokens, context)

    def half(within, *arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return within(*arguments)

    (cast,) = model(**batch).trace.row_decisions
    assert torch.equal(cast.logits, plain.logits)
