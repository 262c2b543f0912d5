"""Dry runs that compute equal layers once against those that compute every layer."""

import pytest
import torch
from transformers import LlamaConfig

from dpn import DPNConfig
from dpn.decoder.layer import DecoderLayer
from dpn.measure import equal_layers
from dpn.measure.dry_run import prefill, training_step
from dpn.metrics.memory import ResourceMeter
from dpn.model import meta_model

LAYERS, TEXT = 7, 12


def model_of(router, depth=1):
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
    )
    return meta_model(
        DPNConfig(
            text_config=text.to_dict(),
            vision_config={
                "name": "vit",
                "image_size": 32,
                "width": 16,
                "depth": depth,
                "heads": 2,
            },
            router_config=router,
            image_token_id=62,
            router_token_id=63,
        )
    )


@pytest.fixture
def computed(monkeypatch):
    """Names of the kinds of layers that were called, without those that were left out."""
    names = []
    compute = equal_layers.EqualLayers._compute

    def note(self, index, call, *args):
        names.append(type(self._layers[index]).__name__)
        return compute(self, index, call, *args)

    monkeypatch.setattr(equal_layers.EqualLayers, "_compute", note)
    return names


def complete(monkeypatch, call):
    """Result of a call that leaves out no layer."""
    with monkeypatch.context() as patch:
        patch.setattr(equal_layers._Call, "repeats", lambda *_: False)
        return call()


def check(monkeypatch, computed, call, most):
    """Compare a call with a complete one; at most `most` decoder layers may be computed."""
    expected = complete(monkeypatch, call)
    assert computed.count(DecoderLayer.__name__) == LAYERS
    computed.clear()
    assert call() == expected
    assert 2 <= computed.count(DecoderLayer.__name__) <= most


@pytest.mark.slow
def test_equal_layers_are_computed_once(monkeypatch, computed):
    model = model_of({"name": "none"})
    check(monkeypatch, computed, lambda: training_step(model, 2, TEXT), 4)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", ["", "vision", "language", "all"])
def test_a_step_is_that_of_all_layers(monkeypatch, computed, checkpoint, autocast, frozen):
    model = model_of({"name": "static", "layers": [3], "kernels": [2, 2]}, depth=6)
    model.checkpoint_layers = model.vision.checkpoint_layers = checkpoint
    if frozen:
        (model if frozen == "all" else getattr(model, frozen)).requires_grad_(False)

    def step():
        return training_step(model, 2, TEXT, "most", torch.float32, autocast)

    check(monkeypatch, computed, step, LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["most", "fewest", "all"])
@pytest.mark.parametrize(
    "router",
    [
        {"name": "dpe", "layers": [4], "min_rows": 1},
        {"name": "fastv"},
        {"name": "dyvte", "hidden": 8},
        {"name": "yopo"},
        {"name": "depth_routing"},
        {"name": "sparse_ffn"},
    ],
    ids=lambda router: router["name"],
)
def test_a_step_with_a_router_is_that_of_all_layers(monkeypatch, computed, router, rows):
    model = model_of(router)

    def step():
        return training_step(model, 2, TEXT, rows, torch.bfloat16, probes=True)

    expected = complete(monkeypatch, step)
    assert step() == expected


def test_a_meter_counts_the_layers_that_a_prefill_leaves_out(monkeypatch, computed):
    config = model_of({"name": "none"}).config

    def flops():
        meter = ResourceMeter()
        prefill(config, TEXT, meter=meter)
        return meter.flops

    check(monkeypatch, computed, flops, 4)


def test_layers_of_the_same_form_are_equal():
    layers = model_of({"name": "none"}).language.layers
    layers[4].requires_grad_(False)
    forms = [equal_layers._form(layer) for layer in layers]
    assert [form == forms[0] for form in forms] == [True] * 4 + [False] + [True] * 2
