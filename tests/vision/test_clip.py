"""The CLIP tower against Hugging Face's model."""

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import CLIPVisionModel

from dpn.vision.clip import CLIP, position_embeddings

from .conftest import make_tower


@pytest.mark.parametrize("select", [-2, -1, -4, 0, 2])
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (28, 28)])
def test_equals_hugging_face(select, size):
    tower = make_tower("clip", select_layer=select)
    stock = CLIPVisionModel(tower.model.config).eval()
    stock.load_state_dict(tower.model.state_dict())
    pixels = torch.randn(2, 3, *size)
    out = stock(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    expected = out.hidden_states[select][:, 1:]
    features = tower.features(pixels, [size] * 2)
    assert features.grids == ((size[0] // 4, size[1] // 4),) * 2
    torch.testing.assert_close(features.tokens, expected.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_parameter_names_have_no_vision_model_level():
    names = set(make_tower("clip").state_dict())
    assert "model.embeddings.position_embedding.weight" in names
    assert "model.encoder.layers.2.mlp.fc2.bias" in names  # not run, but part of the weights
    assert "model.post_layernorm.weight" in names
    assert len(names) == 7 + 3 * 16


def test_positions_are_resized_in_fp32():
    model = make_tower("clip").model
    for dtype in (torch.bfloat16, torch.float16):
        table = model.to(dtype).embeddings.position_embedding.weight
        native = table[1:].float().reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
        for antialias in (False, True):
            resized = interpolate(native, (3, 7), mode="bicubic", antialias=antialias)
            got = position_embeddings(model, (3, 7), antialias)
            assert torch.equal(got[0], table[0])
            assert torch.equal(got[1:], resized[0].permute(1, 2, 0).reshape(21, 16).to(dtype))


def test_defaults_have_the_size_of_llavas_tower():
    with torch.device("meta"):
        tower = CLIP()
        features = tower.features(torch.empty(1, 3, 336, 336), [(336, 336)])
    assert features.tokens.shape == (576, 1024)
    assert features.grids == ((24, 24),)
    # 24 layers take 0.3819 TFLOPs (torch's counter); LLaVA needs 23 of them.
    with torch.device("meta"):
        assert CLIP(select_layer=-1).flops((24, 24)) / 1e12 == pytest.approx(0.3819, abs=5e-5)
    assert tower.flops((24, 24)) / 1e12 == pytest.approx(0.3819 * 23 / 24, rel=1e-3)


def test_errors():
    with pytest.raises(ValueError, match="select_layer=-26 is not one of the 25 hidden states"):
        CLIP(select_layer=-26)
    with pytest.raises(ValueError, match="15 x 16 pixels cannot be divided into patches of 4"):
        make_tower("clip").features(torch.zeros(1, 3, 16, 16), [(15, 16)])
