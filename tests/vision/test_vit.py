"""The tiny tower against Hugging Face's own forward pass."""

import pytest
import torch

from .conftest import make_tower


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_equals_hugging_face(size):
    tower = make_tower("vit")
    pixels = torch.randn(2, 3, *size)
    expected = tower.model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    torch.testing.assert_close(tower.encode(pixels)["tokens"], expected)
