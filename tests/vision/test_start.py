"""Initial weights of the vision tower."""

import pytest

from dpn.vision.vit import ViT


@pytest.mark.parametrize("std", [0.02, 0.08])
def test_initial_weights_have_the_given_standard_deviation(std):
    tower = ViT(init_std=std).model
    for weight in (
        tower.embeddings.patch_embeddings.projection.weight,
        tower.layers[0].attention.q_proj.weight,
    ):
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.05)
    # The position embeddings do not depend on the standard deviation.
    assert float(tower.embeddings.position_embeddings[0, 1:].detach().std()) > 0.4
