"""Attention scores for routers against the attention weights of the stock model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from dpn.decoder import layer as layers
from dpn.decoder.layer import _probabilities
from dpn.routers import Router, aim, sparsevlm
from dpn.routers._dropping import dot

from .conftest import collate, make_model, make_samples

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}


class Spy(Router):
    """Reads the scores of two rows of every sample, before and after every layer."""

    def at(self, where, layer, tokens, context):
        rows = [[a, b - 1] for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]
        self.seen[where, layer] = context.attention_scores(tokens, rows)
        self.entered = context.entered
        return tokens


def asked(model, batch):
    model.router = Spy(text=model.router.text, grid=model.router.grid)
    model.router.seen = {}
    model(**batch)
    return model.router.seen, model.router.entered


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_weights_of_eager_attention(family):
    model = make_model(text=FAMILIES[family], layers=3)
    seen, pack = asked(model, collate(make_samples()))
    stock = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").eval()
    stock.model.load_state_dict(model.language.state_dict())
    for b, hidden in enumerate(pack.hidden.split(pack.lengths)):
        weights = stock(inputs_embeds=hidden[None], output_attentions=True).attentions
        for layer, whole in enumerate(weights):
            expected = whole[0][:, [0, -1]].transpose(0, 1)  # [2, H, n]
            for where in ("pre", "post"):
                got = seen[where, layer][b]
                assert got.dtype == torch.float32
                assert not got.requires_grad
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_attention_without_separate_projections_is_refused():
    model = make_model()
    del model.language.layers[0].self_attn.q_proj
    with pytest.raises(ValueError, match="has no q_proj and k_proj"):
        asked(model, collate(make_samples()))


def test_probabilities_are_computed_in_fp32_under_autocast():
    query, key = torch.randn(3, 4, 16), torch.randn(9, 2, 16)
    place = torch.tensor([2, 5, 8])
    plain = _probabilities(query, key, place, 0.25)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_probabilities(query, key, place, 0.25), plain)
        product = dot(query[0], query[0].T)
    assert torch.equal(product, query[0] @ query[0].T)


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastv", "sparsevlm", "aim"])
def test_scores_of_a_few_heads_and_rows_at_a_time_choose_the_same(name, monkeypatch):
    options = {"fastv": {"k": 1}, "sparsevlm": {"layers": [0, 2]}, "aim": {"first": 0}}[name]
    model, batch = make_model({"name": name, **options}), collate(make_samples([0, 3, 4]))
    expected, sizes = model(**batch).logits, []

    def spy(query, *args):
        sizes.append(query.shape[1])
        return _probabilities(query, *args)

    monkeypatch.setattr(layers, "_probabilities", spy)
    monkeypatch.setattr(layers, "GROUP_BYTES", 1)
    monkeypatch.setattr(aim, "SIMILARITIES", 3)
    monkeypatch.setattr(sparsevlm, "WEIGHTS", 3)
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    assert set(sizes) == {1}


def test_a_summary_holds_few_probabilities_at_once():
    sizes = []

    def summary(probs):
        sizes.append(probs.numel() * 4)
        return probs.sum(0)

    query, key = torch.randn(512, 28, 4), torch.randn(2048, 4, 4)
    found = layers._summarised(query, key, torch.arange(512) + 1000, 0.5, summary)
    assert found.shape == (28, 2048)
    assert len(sizes) > 1
    assert max(sizes) <= layers.GROUP_BYTES
    whole = _probabilities(query, key, torch.arange(512) + 1000, 0.5).sum(0)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)
