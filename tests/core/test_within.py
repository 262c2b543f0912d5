"""Layers that compute less for visual rows, against masks over full attention maps of a sample."""

from itertools import product

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from dpn import cost, routers
from dpn.cost import TextShape, layer_macs
from dpn.decoder.rows import blocks_in_window
from dpn.routers.base import Router
from dpn.tokens import LayerPlan, Work, pairs_in_window, pairs_within, probed_rows

from .conftest import IMAGE, collate, make_model, make_samples, without
from .test_cost import count

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.15,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=4),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
}
PLANS = {
    "nothing less": LayerPlan(),
    "neighbours": LayerPlan(radius=1),
    "heads": LayerPlan(heads=(1,)),
    "no heads": LayerPlan(heads=()),
    "ffn": LayerPlan(ffn=12),
    "all": LayerPlan(radius=1, heads=(0,), ffn=24),
    "window": LayerPlan(window=3),
    "probe": LayerPlan(ffn=12, probe=4),
    "hollow": LayerPlan(heads=(0,), ffn=24, window=5, probe=100),
    "both": LayerPlan(radius=1, window=4),
    "mute": LayerPlan(mute=True),
    "mute and all": LayerPlan(radius=1, heads=(0,), ffn=24, mute=True),
}


class Planned(Router):
    """Uses the same plan at all layers but the first."""

    plan: LayerPlan | None = None

    def within(self, layer, tokens, context):
        return self.plan if layer else None


def planned(model, plan):
    model.router = Planned(text=model.router.text, grid=model.router.grid)
    model.router.plan = plan
    return model


def naive_layer(layer, hidden, spans, plan, rotary, blind=False):
    """Run a layer on a sample `[n, D]`, masking after computing everything; with `blind`, text rows
    attend to text only.
    """
    n, attention = len(hidden), layer.self_attn
    visual = torch.zeros(n, dtype=torch.bool)
    sees = torch.ones(n, n).tril().bool()
    for start, (height, width) in spans:
        visual[start : start + height * width] = True
    if blind:
        sees &= visual[:, None] | ~visual
    if plan.radius is not None:
        sees &= ~(visual[:, None] & visual)
        for start, (height, width) in spans:
            for i in range(height * width):
                for j in range(height * width):
                    rows, columns = abs(i // width - j // width), abs(i % width - j % width)
                    if max(rows, columns) <= plan.radius:
                        sees[start + i, start + j] = True
    if plan.window is not None:
        image = torch.zeros(n)
        for number, (start, (height, width)) in enumerate(spans, 1):
            image[start : start + height * width] = number
        steps = torch.arange(n)[:, None] - torch.arange(n)
        near = (image[:, None] == image) & (steps >= 0) & (steps <= plan.window)
        sees &= near | ~(visual[:, None] & visual)
    normed = layer.input_layernorm(hidden)
    size, group = attention.head_dim, attention.num_key_value_groups

    def heads(kind):
        made = getattr(attention, f"{kind}_proj")(normed).view(n, -1, size)
        norm = getattr(attention, f"{kind}_norm", None)
        made = (made if norm is None or kind == "v" else norm(made)).transpose(0, 1)
        return made if kind == "q" else made.repeat_interleave(group, 0)

    cos, sin = rotary

    def rotate(x):
        half = size // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    scores = rotate(heads("q")) @ rotate(heads("k")).transpose(1, 2) * attention.scaling
    weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    active = torch.ones(len(weights), dtype=torch.bool)
    if plan.heads is not None:
        active = torch.zeros(len(weights) // group, dtype=torch.bool)
        active[list(plan.heads)] = True
        active = active.repeat_interleave(group)
        weights = torch.where(active[:, None, None] | ~visual, weights, 0.0)  # after the softmax
    if plan.mute:
        weights = torch.where(visual, 0.0, weights)
    out = weights @ heads("v")
    out = torch.where(active[:, None, None] | ~visual[:, None], out, 0.0)
    hidden = hidden + attention.o_proj(out.transpose(0, 1).flatten(1))
    normed = layer.post_attention_layernorm(hidden)
    units = layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)
    if plan.probe is not None:
        for start, (height, width) in spans:
            rows = height * width
            places = start + torch.linspace(0, rows - 1, max(1, rows // plan.probe)).long()
            order = units[places].abs().mean(0).argsort(descending=True)
            for place in range(start, start + rows):
                units[place, order[plan.ffn :]] = 0
    elif plan.ffn is not None:
        units[visual, plan.ffn :] = 0
    return hidden + layer.mlp.down_proj(units)


def naive(model, sample, plans, k=4):
    """Return the logits of a sample under plans, with text attending to visual rows in k layers."""
    batch = without(collate([sample]), "labels")
    seen = {}

    class Recorder(Router):
        def between(self, layer, tokens, context):
            if layer == 0:
                seen["tokens"] = tokens
            return tokens

    Recorder.where = "pre"
    kept, model.router = model.router, Recorder(text=model.router.text, grid=model.router.grid)
    model(**batch)
    model.router = kept
    tokens = seen["tokens"]
    hidden = tokens.hidden
    spans = [(tokens.row(s.sample, s.column) - s.rows + 1, s.grid) for s in tokens.spans]
    cos, sin = model.language.rotary_emb(hidden[None], position_ids=torch.arange(len(hidden))[None])
    for index, layer in enumerate(model.language.layers):
        rotary = (cos[0], sin[0])
        hidden = naive_layer(layer, hidden, spans, plans[index], rotary, blind=index >= k)
    columns = [tokens.row(0, c) for c in range(len(sample[0]))]
    return model.lm_head(model.language.norm(hidden))[columns]


@pytest.mark.parametrize(
    ("family", "kind"),
    # All plans with one family; with the others those that use every part of a layer.
    [*product(["llama"], PLANS), *product(["qwen2", "qwen3"], ["nothing less", "all", "hollow"])],
)
def test_a_pack_equals_masked_samples(kind, family):
    model = planned(make_model(text=FAMILIES[family]), PLANS[kind])
    samples = make_samples()
    batch = collate(samples)
    got = model(**without(batch, "labels")).logits
    for b, sample in enumerate(samples):
        with torch.no_grad():
            want = naive(model, sample, [LayerPlan(), *[PLANS[kind]] * 3])
        torch.testing.assert_close(got[b, : len(want)], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", PLANS)
def test_appending_equals_recomputing(kind):
    model = planned(make_model(), PLANS[kind])
    ids, _, images = make_samples([0])[0]
    whole = without(collate([(ids, ids, images)]), "labels")
    with torch.no_grad():
        expected = model(**whole).logits[0, -2:]
        start = model(
            **whole | {k: whole[k][:, :-2] for k in ("input_ids", "attention_mask")}, use_cache=True
        )
        rest = model(
            input_ids=whole["input_ids"][:, -2:],
            attention_mask=whole["attention_mask"],
            past_key_values=start.past_key_values,
        ).logits[0]
    torch.testing.assert_close(rest, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["all", "hollow"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_equal_those_of_masked_samples(checkpoint, kind):
    plan, sample = PLANS[kind], make_samples([0])[0]
    model = planned(make_model(), plan).train()
    model.checkpoint_layers = checkpoint
    weights = dict(model.language.layers.named_parameters())
    towards = torch.randn(len(sample[0]), 50)
    batch = without(collate([sample]), "labels")
    got = torch.autograd.grad(
        (model(**batch, return_logits=True).logits[0] * towards).sum(), weights.values()
    )
    expected = torch.autograd.grad(
        (naive(model, sample, [LayerPlan(), *[plan] * 3]) * towards).sum(), weights.values()
    )
    for name, one, other in zip(weights, got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", PLANS)
def test_flops_equal_the_counter(kind):
    plan = PLANS[kind]
    model = planned(make_model(text=FAMILIES["llama"]), plan)
    ids, _, images = make_samples([0])[0]
    batch = without(collate([(ids, ids, images)]), "labels")
    out, counted = count(lambda: model(**batch, logits_to_keep=1))
    assert cost.prefill_flops(model, out.trace, [len(ids) - 1]) == [counted]


def test_macs_of_a_plan_equal_hand_computed_values():
    text = TextShape(4, 32, 32, 48, kv_heads=4)
    n, pairs = 16, 16 * 3 * 4  # 4 x 4 rows, three lines of four
    linear = 32 * 32 + 3 * 32 * 32 / 4 + 3 * 32 * 24  # keys in all heads, the rest in one of four
    by_hand = n * linear + 2 * pairs * 32 / 4
    plan = LayerPlan(radius=1, heads=(0,), ffn=24)
    assert pairs_within(1, (4, 4)) == pairs
    assert layer_macs(text, plan, Work(n, pairs)) == by_hand
    probed = by_hand + 3 * 2 * 32 * 48  # gate and up of three rows
    assert layer_macs(text, plan, Work(n, pairs, probed=3)) == probed


def test_windows_over_several_blocks():
    """Images have 240 and 16 rows, so that windows begin within a block and in the one before."""
    model = planned(make_model(), LayerPlan(window=70))
    ids, _, images = make_samples([1])[0]
    images = [torch.randn(3, 96, 40), images[1]]
    got = model(**without(collate([(ids, ids, images)]), "labels")).logits[0]
    with torch.no_grad():
        want = naive(model, (ids, ids, images), [LayerPlan(), *[LayerPlan(window=70)] * 3])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [0, 5, 64, 70, 256])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128, 200])
def test_blocks_contain_every_row_and_its_window_once(rows, window):
    seen = torch.zeros(rows, rows)
    blocks = blocks_in_window(rows, window)
    for take, keys, sees in blocks:
        for queries, places, see in zip(take, keys, sees, strict=True):
            assert len(set(places)) == len(places)
            for query, row in zip(queries, see, strict=True):
                seen[query, places[row]] += 1
    assert torch.equal(seen, torch.ones(rows, rows).tril().triu(-window))
    assert sum(b.take.size * b.keys.shape[1] for b in blocks) == pairs_in_window(window, rows)


def test_a_probe_is_evenly_spaced():
    assert probed_rows(576, 10)[:3] == [0, 10, 20]
    assert len(probed_rows(576, 10)) == 57
    assert probed_rows(576, 10)[-1] == 575
    assert probed_rows(7, 10) == [0]
    assert probed_rows(0, 10) == []


@pytest.mark.parametrize("name", ["layer_drop", "yopo"])
@torch.no_grad()
def test_layer_drop_as_released_loses_the_attention_to_visual_rows(name):
    """From layer 2 on, attention to visual keys is set to zero after the softmax."""
    model = make_model()
    sizes = {"text": model.router.text, "grid": model.router.grid}
    other = {"radius": 1, "ratio": 4.0} if name == "yopo" else {}
    model.router = routers.build(name, k=2, reference=True, **other, **sizes)
    plans = [LayerPlan(**({"radius": 1, "ffn": 12} if other else {}), mute=n > 1) for n in range(4)]
    samples = make_samples()
    out = model(**without(collate(samples), "labels"))
    assert [sum(rows) for rows in out.trace.visual_rows] == [69] * 4
    for b, sample in enumerate(samples):
        got, want = out.logits[b, : len(sample[0])], naive(model, sample, plans)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    dropped = routers.build(name, k=2, **other, **sizes)
    assert not torch.allclose(out.logits, model(**collate(samples), router=dropped).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_yopo_equals_the_released_masks(family):
    """The reference applies all four masks to full attention maps of one sample."""
    model = make_model(text=FAMILIES[family])
    heads = FAMILIES[family].num_key_value_heads
    scores = [[0.1 * (h != layer % 2) for h in range(heads)] for layer in range(4)]
    text, grid = model.router.text, model.router.grid
    arguments = {"radius": 1, "scores": scores, "ratio": 4.0, "k": 3}
    model.router = routers.build("yopo", **arguments, text=text, grid=grid)
    assert model.router.check() == []
    few = [LayerPlan(1, tuple(h for h in range(heads) if h != n % 2), 12) for n in range(4)]
    plans = [LayerPlan(radius=1, ffn=12)] * 2 + few[2:]  # two layers keep every head
    samples = make_samples()
    batch = collate(samples)
    out = model(**without(batch, "labels"))
    assert [sum(rows) for rows in out.trace.visual_rows] == [69, 69, 69, 0]
    for b, sample in enumerate(samples):
        with torch.no_grad():
            want = naive(model, sample, plans, k=3)
        is_text = sample[0] != IMAGE
        got = out.logits[b, : len(want)]
        torch.testing.assert_close(got[is_text], want[is_text], atol=1e-5, rtol=1e-4)
