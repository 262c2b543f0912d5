"""Additional features of the towers against Hugging Face's own attention maps and hidden states."""

import pytest
import torch
from transformers import CLIPVisionModel, ViTModel

from dpn.vision import Needs

from ..core.test_cost import count
from .conftest import make_tower

ALL = Needs(layers=(0, 0.5, 1), attention="last", cls=True)
TOWERS = {
    "vit": ("vit", {}, 2),
    "clip": ("clip", {}, 2),  # select_layer -2 of 3 layers: 2 run
    "clip, all layers": ("clip", {"select_layer": -1}, 3),
}


def hugging_face(tower, pixels):
    """Return hidden states, attention maps and keys of every layer."""
    config = type(tower.model.config)(**tower.model.config.to_dict())
    config._attn_implementation = "eager"
    stock = (
        CLIPVisionModel(config) if config.model_type.startswith("clip") else ViTModel(config, False)
    )
    stock.load_state_dict(tower.model.state_dict())
    keys = []
    for name, module in stock.named_modules():
        if name.endswith("k_proj"):
            module.register_forward_hook(lambda *x: keys.append(x[2]))
    out = stock.eval()(
        pixels, output_attentions=True, output_hidden_states=True, interpolate_pos_encoding=True
    )
    return out, keys


@pytest.mark.parametrize("which", TOWERS)
@pytest.mark.parametrize("place", ["last", "next"])
def test_extras_equal_hugging_face(which, place):
    name, settings, run = TOWERS[which]
    tower = make_tower(name, **settings)
    tower.request(Needs(ALL.layers, place, cls=True))
    pixels = torch.randn(2, 3, 16, 20)
    out, keys = hugging_face(tower, pixels)
    (group,) = tower.features(pixels, [(16, 20)] * 2).by_grid()
    layer = min(run - 1 + (place == "next"), len(keys) - 1)
    close = {"atol": 1e-5, "rtol": 1e-5}
    expected = out.attentions[layer][:, :, 0, 1:]
    torch.testing.assert_close(group.cls_attention(group.heads), expected, **close)
    torch.testing.assert_close(group.keys, keys[layer], **close)
    depth = len(keys)
    indices = [0, round(depth / 2), min(depth, run)]
    states = torch.stack([out.hidden_states[i][:, 1:] for i in indices], 2)
    torch.testing.assert_close(group.layers, states, **close)
    last = out.last_hidden_state if name == "vit" else out.hidden_states[run]
    torch.testing.assert_close(group.cls, last[:, :1], **close)


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_extras_of_two_image_sizes_and_none_without_a_request(name):
    tower = make_tower(name)
    plain = tower.features(torch.randn(1, 3, 16, 16), [(16, 16)])
    assert [plain.layers, plain.cls, plain.query, plain.keys] == [None] * 4
    tower.request(ALL)
    sizes = [(8, 16), (16, 16), (8, 16)]
    pixels = torch.randn(3, 3, 16, 16)
    groups = tower.features(pixels, sizes).by_grid()
    assert [g.members for g in groups] == [(0, 2), (1,)]
    for group in groups:
        for place, i in enumerate(group.members):
            height, width = sizes[i]
            (alone,) = tower.features(pixels[i : i + 1, :, :height, :width], [sizes[i]]).by_grid()
            for what in ("tokens", "layers", "cls", "query", "keys"):
                torch.testing.assert_close(getattr(group, what)[place], getattr(alone, what)[0])


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_extras_are_counted_and_can_be_checkpointed(name):
    tower = make_tower(name)
    tower.request(ALL)
    pixels = torch.randn(1, 3, 16, 16)
    _, counted = count(lambda: tower.features(pixels, [(16, 16)]))
    assert tower.flops((4, 4)) == counted
    grads = []
    for tower.checkpoint_layers in (False, True):
        tower.train().zero_grad()
        features = tower.features(pixels, [(16, 16)])
        assert not features.keys.requires_grad
        (features.layers.square().sum() + features.cls.sum()).backward()
        grads.append([p.grad.clone() for p in tower.parameters() if p.grad is not None])
    assert all(map(torch.equal, *grads))


def test_a_tower_without_extras_refuses_a_request():
    with pytest.raises(ValueError, match="CLIPConvNeXt does not provide; use a model whose vision"):
        make_tower("clip_convnext").request(ALL)
