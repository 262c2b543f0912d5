"""Contract tests of all vision towers."""

import pytest
import torch

from ..core.test_cost import count
from .conftest import TOWERS, make_tower


@pytest.mark.parametrize("name", TOWERS)
def test_images_of_two_sizes(name):
    tower = make_tower(name)
    small, large = tower.image_size, 2 * tower.image_size
    pixels = torch.zeros(3, 3, large, large)
    sizes = [(small, small), (large, large), (small, small)]
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    features = tower.features(pixels, sizes)
    for tokens, grid, image, size in zip(
        features.per_image(), features.grids, pixels, sizes, strict=True
    ):
        alone = tower.encode(image[None, :, : size[0], : size[1]])["tokens"][0]
        assert tokens.shape == (grid[0] * grid[1], tower.output_size)
        torch.testing.assert_close(tokens, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("scale", [1, 3])
def test_flops_equal_the_counter(name, scale):
    tower = make_tower(name)
    side = scale * tower.image_size
    features, counted = count(lambda: tower.features(torch.randn(1, 3, side, side), [(side, side)]))
    assert tower.flops(features.grids[0]) == counted


@pytest.mark.parametrize("name", TOWERS)
def test_trainable_parameters_get_gradients_with_and_without_checkpointing(name):
    tower = make_tower(name).train()
    pixels = torch.randn(2, 3, tower.image_size, tower.image_size)
    grads = []
    for flag in (False, True):
        tower.checkpoint_layers = flag
        tower.zero_grad()
        tower.encode(pixels)["tokens"].square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None})
    assert grads[0].keys() == {n for n, p in tower.named_parameters() if p.requires_grad}
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", TOWERS)
def test_checkpointing_saves_memory(name):
    tower = make_tower(name).train()
    pixels = torch.randn(2, 3, tower.image_size, tower.image_size)
    kept = []
    for flag in (False, True):
        tower.checkpoint_layers = flag
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            tower.encode(pixels)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("name", TOWERS)
def test_half_precision(name):
    tower = make_tower(name)
    side = 2 * tower.image_size  # position embeddings are resized
    pixels = torch.randn(1, 3, side, side).bfloat16()
    expected = tower.encode(pixels.float())["tokens"]
    tokens = tower.bfloat16().encode(pixels)["tokens"]
    assert tokens.dtype == torch.bfloat16
    assert (tokens - expected).norm() < 0.05 * expected.norm()
