"""Initial weights of what lies before the decoder."""

import pytest
import torch

from dpn.projectors.mlp import MLPProjector
from dpn.projectors.pooled import PooledProjector
from dpn.vision.vit import ViT


@pytest.mark.parametrize("kind", [MLPProjector, PooledProjector])
def test_gain_scales_pytorchs_start(kind):
    def layers(**gain):
        torch.manual_seed(0)
        return kind(input_size=64, output_size=48, grid=(4, 4), **gain).layers

    torch.manual_seed(0)
    first = torch.nn.Linear(64, 48)
    assert torch.equal(layers()[0].weight, first.weight)
    assert torch.equal(layers(gain=3.0)[0].weight, 3 * first.weight)
    assert torch.equal(layers(gain=3.0)[2].bias, 3 * layers()[2].bias)


@pytest.mark.parametrize("std", [0.02, 0.08])
def test_tower_starts_with_the_given_spread(std):
    tower = ViT(init_std=std).model
    for weight in (
        tower.embeddings.patch_embeddings.projection.weight,
        tower.layers[0].attention.q_proj.weight,
    ):
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.05)
    # The positions keep their own size, whatever the spread.
    assert float(tower.embeddings.position_embeddings[0, 1:].detach().std()) > 0.4
