"""The ranks of layers for `router=depth_routing`, against attention maps of the stock model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpn.routers.depth_routing import DepthRoutingRouter, mean_ranks

from .conftest import collate, make_model, make_samples, without
from .eager import Eager


@pytest.mark.parametrize("tolerance", [None, 0.05, 0.3])
@torch.no_grad()
def test_ranks_equal_those_of_eager_attention_maps(tolerance):
    model, samples = make_model({"name": "vtw", "k": 1}, seed=3), make_samples()
    batches = [without(collate(part), "labels") for part in (samples[:2], samples[2:])]
    found = mean_ranks(model, batches, tolerance)
    config = model.config.text_config
    stock = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    stock.model.load_state_dict(model.language.state_dict())
    eager, expected = Eager(model, "keep"), torch.zeros(4)
    for ids, _, images in samples:
        eager.start(ids, images)
        out = stock(inputs_embeds=eager.hidden[None], output_attentions=True)
        for layer, maps in enumerate(out.attentions):
            own = torch.eye(maps.shape[-1], dtype=torch.bool)
            singular = torch.linalg.svdvals(maps[0].masked_fill(own, 0))  # [H, n]
            least = maps.shape[-1] * torch.finfo(torch.float32).eps
            least = least if tolerance is None else tolerance
            expected[layer] += (singular > least * singular[:, :1]).sum(1).float().mean() / 5
    torch.testing.assert_close(torch.tensor(found), expected)
    assert len(set(found)) > 1 or tolerance is None
    layers = DepthRoutingRouter.search(model, batches, tolerance)["layers"]
    assert [found[layer] for layer in layers] == sorted(found)
