"""A packed batch equals a naive computation of one sample at a time: to 1e-5, gradients to 1e-4."""

import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, Qwen2Config

from .conftest import collate, make_model, make_samples
from .naive import Naive, cross_entropy_sum

DPE = {"name": "dpe", "layers": [0, 2], "min_rows": 1}


def check(model, options, backend="auto", side="right", training=False, samples=None):
    """Compare logits or, in training, loss and gradients; return the routes of the batch."""
    samples = samples or make_samples()
    batch = collate(samples, side)
    model.attention = backend
    model.train(training)
    out = model(**batch, return_logits=True)
    naive = Naive(model)
    options = {"layers": model.router.plan.layers, **options}
    total = torch.zeros(())
    for b, (ids, labels, images) in enumerate(samples):
        route = out.trace.experts_of(b)
        end = (labels != -100).nonzero()
        logits, taken = naive.sample(
            ids,
            images,
            route=route if training or not options.get("scaled", True) else None,
            options=options,
            instruction_end=int(end[0]) if len(end) else None,
        )
        assert taken == route
        place = batch["attention_mask"][b].bool()
        torch.testing.assert_close(out.logits[b][place], logits, atol=1e-5, rtol=1e-4)
        total = total + cross_entropy_sum(logits, labels.tolist())
    count = int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(out.loss, total / count, atol=1e-5, rtol=1e-5)
    if training:
        # The naive model averages instead of convolving, so it has no weights of conv experts.
        named = dict(model.named_parameters())
        parameters = [p for name, p in named.items() if not name.startswith("router.experts")]
        ours = torch.autograd.grad(out.loss, parameters, allow_unused=True)
        theirs = torch.autograd.grad(total / count, parameters, allow_unused=True)
        seen = 0
        for a, b in zip(ours, theirs, strict=True):
            a = torch.zeros(()) if a is None else a
            b = torch.zeros(()) if b is None else b
            torch.testing.assert_close(*torch.broadcast_tensors(a, b), atol=1e-4, rtol=1e-3)
            seen += bool(b.abs().max() > 1e-4)
        assert seen > 0.6 * len(ours)
    return [out.trace.experts_of(b) for b in range(len(samples))]


@pytest.mark.parametrize("backend", ["segments", "padded"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_dpe_by_argmax(backend, side, positions):
    model = make_model({**DPE, "positions": positions}, seed=3)
    routes = check(model, {"positions": positions}, backend, side)
    assert len({tuple(r.values()) for r in routes}) > 1, "the gates must disagree to test anything"


@pytest.mark.parametrize("backend", ["segments", "padded"])
@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_dpe_training_gradients(backend, positions):
    model = make_model({**DPE, "positions": positions}, seed=3)
    check(model, {"positions": positions}, backend, training=True)


@pytest.mark.parametrize(
    "change",
    [
        {"reduce": "avg"},
        {"reduce": "conv"},
        {"where": "pre"},
        {"gate": "linear"},
        {"token": "last"},
        {"read": "first"},
        {"temperature": 1.0},
        {"min_rows": 5},
        {"kernels": [[1, 1], [2, 2], [3, 2]]},
    ],
    ids=lambda c: f"{next(iter(c))}",
)
def test_dpe_options(change):
    model = make_model({**DPE, **change}, seed=3)
    options = {k: v for k, v in change.items() if k != "gate"}
    if options.get("reduce") == "conv":  # with its initial weights it averages
        options["reduce"] = "avg"
    if "kernels" in options:
        options["kernels"] = [tuple(k) for k in options["kernels"]]
    check(model, options)
    check(model, options, training=True)


def test_conv_experts_learn_and_pool_with_their_weights():
    model = make_model({**DPE, "reduce": "conv", "kernels": [[2, 2]]}, seed=3)
    weight = model.router.experts["0"][0]
    with torch.no_grad():
        weight.zero_()[:, 0, 0, 1] = 1.0  # takes the upper right cell of each window
    batch = collate(make_samples([0]))
    out = model.train()(**batch)
    out.loss.backward()
    assert weight.grad.abs().max() > 0
    rows = torch.randn(1, 4, 4, 32)
    from dpn.tokens import convolve_grid

    torch.testing.assert_close(convolve_grid(rows, weight), rows[:, 0::2, 1::2])


@pytest.mark.parametrize("router", ["static", "random"])
def test_fixed_and_random_pooling(router):
    model = make_model({"name": router, "layers": [0, 2], "min_rows": 1}, seed=3)
    kernels = ((2, 2), (1, 1)) if router == "static" else ((1, 1), (1, 2), (2, 2))
    routes = check(model, {"scaled": False, "kernels": kernels})
    if router == "random":
        assert len({tuple(r.values()) for r in routes}) > 1
    check(model, {"scaled": False, "kernels": kernels}, training=True)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_none_equals_hugging_face(family):
    """router=none on the same weights and embeddings equals HF's own causal LM, with padding."""
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.15,
    }
    text = {
        "llama": None,
        "qwen2": Qwen2Config(**sizes),
        "mistral": MistralConfig(**sizes, sliding_window=None),
    }[family]
    model = make_model(text=text, layers=3)
    samples = make_samples()
    batch = collate(samples)
    out = model(**batch)

    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_config(model.config.text_config, attn_implementation="eager")
    stock.eval()
    stock.model.load_state_dict(model.language.state_dict())
    stock.lm_head.load_state_dict(model.lm_head.state_dict())
    rows, row_of = [], []
    for ids, _, images in samples:
        parts, places, images = [], [], list(images)
        for token in ids.tolist():
            if token == model.config.image_token_id:
                pixels = images.pop(0)
                features = model.vision.features(pixels[None], [tuple(pixels.shape[1:])])
                parts.append(model.projector(features).tokens)
            else:
                parts.append(stock.model.embed_tokens.weight[token][None])
            places.append(sum(map(len, parts)) - 1)
        rows.append(torch.cat(parts))
        row_of.append(places)
    embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.tensor([[1] * len(r) + [0] * (embeds.shape[1] - len(r)) for r in rows])
    logits = stock(inputs_embeds=embeds, attention_mask=mask).logits
    for b, (ids, _, _) in enumerate(samples):
        torch.testing.assert_close(
            out.logits[b, : len(ids)], logits[b, row_of[b]], atol=1e-5, rtol=1e-5
        )


def test_the_text_model_loads_into_a_stock_model():
    """The text model keeps HF's parameter names, so its weights run in HF's own classes."""
    model = make_model()
    stock = LlamaForCausalLM(model.config.text_config)
    assert list(stock.model.state_dict()) == list(model.language.state_dict())
    stock.model, stock.lm_head = model.language, model.lm_head
    ids = torch.randint(3, 40, (2, 9))
    torch.testing.assert_close(stock(ids).logits, model(ids).logits)


def test_another_model_from_the_same_config_changes_nothing():
    model = make_model()
    batch = collate(make_samples())
    before = model(**batch).logits
    LlamaForCausalLM._from_config(model.config.text_config, attn_implementation="eager")
    assert torch.equal(model(**batch).logits, before)
    model.language.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="mix the samples"):
        model(**batch)


def test_checkpointed_layers_give_the_same_gradients():
    model = make_model(DPE).train()
    batch = collate(make_samples())
    grads = []
    for flag in (False, True):
        model.checkpoint_layers = flag
        model.zero_grad()
        model(**batch).loss.backward()
        grads.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_training_computes_supervised_logits_only():
    model = make_model().train()
    out = model(**collate(make_samples()))
    assert out.logits is None
    assert model(**collate(make_samples()), return_logits=True).logits is not None


def test_sample_losses_equal_those_of_single_samples():
    model, samples = make_model(DPE), make_samples()
    samples[1] = (samples[1][0], torch.full_like(samples[1][1], -100), samples[1][2])
    got = model(**collate(samples)).trace.sample_loss
    alone = [model(**collate([sample])).loss.item() for sample in samples]
    alone[1] = float("nan")
    torch.testing.assert_close(got, torch.tensor(alone), equal_nan=True)


def test_batch_without_supervised_token_has_connected_zero_loss():
    model = make_model(DPE).train()
    batch = collate(make_samples())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = model(**batch).loss
    assert loss.item() == 0.0
    loss.backward()
    gradients = [p.grad for p in model.language.parameters()]
    assert all(g is not None and g.abs().max() == 0 for g in gradients)


def test_one_seed_gives_the_same_weights_with_any_router():
    without_gates, with_gates = (make_model(router).state_dict() for router in (None, DPE))
    assert all(torch.equal(value, with_gates[name]) for name, value in without_gates.items())
