"""Attention of stock vision towers that projectors read, against Hugging Face's own."""

import copy

import pytest
import torch

import dpn
from dpn.common.errors import SettingError
from dpn.compressed import _tower
from dpn.families import family_of
from tests.vlm_batches import batch, fresh
from tests.vlms import Picture, build, model

from . import naive_projectors as naive
from .stock_rows import PROMPTS, sharp

CLOSE = {"atol": 1e-6, "rtol": 1e-4}


def read(name, vlm, inputs, method):
    """Return what the reader of a compressed model notes: `[K, n, 1 + C]` of each call."""
    small = dpn.compress(vlm, projector=method)
    inner, reader = small.model, small.dpn.reader
    with reader.reading() as found:
        naive.encode(name, type("Stock", (), {"model": _Plain(inner)}), fresh(inputs))
    return found


class _Plain:
    """The inner model, whose images are encoded by the stock function."""

    def __init__(self, inner):
        self.inner, self.stock = inner, type(inner).__mro__[1]

    def get_image_features(self, **given):
        return self.stock.get_image_features(self.inner, **given)


@torch.no_grad()
@pytest.mark.parametrize("method", ["visionzip", "prumerge"])
@pytest.mark.parametrize("name", naive.MODULES)
def test_attention_and_keys_are_those_of_the_tower(name, method):
    vlm = sharp(name)
    inputs = batch(vlm, PROMPTS)
    one = method == "prumerge"
    wanted = naive.patch_values(name, vlm, inputs, after=int(one), one_softmax=one)
    got = [part for call in read(name, vlm, inputs, method) for part in call]
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert max(float(part[:, 0].max() / part[:, 0].mean()) for part in got) > 2


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "llava_onevision", "internvl", "smolvlm"])
def test_attention_is_the_one_that_eager_towers_return(name):
    vlm = sharp(name)
    eager = copy.deepcopy(vlm)
    eager.set_attn_implementation("eager")
    inputs = batch(vlm, [[1, Picture(112, 112), 5]])
    tower = getattr(eager.model, "vision_tower", None) or eager.model.vision_model
    pixels = inputs["pixel_values"].flatten(0, -4)
    every = tower(pixels, output_attentions=True).attentions
    layer = int(naive.MODULES[name][0].split(".")[-2])
    attention = every[layer].mean(1)  # [tiles, n, n]
    cls = name in naive.HAS_CLS
    wanted = attention[:, 0, 1:] if cls else attention.mean(1)
    for either in (vlm, eager):  # the copy keeps the implementation of its tower
        got = torch.cat(read(name, either, inputs, "visionzip"))[..., 0]
        torch.testing.assert_close(got, wanted, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm"])
def test_scores_are_computed_in_pieces(name, monkeypatch):
    inputs = batch(sharp(name), PROMPTS)
    whole = read(name, sharp(name), inputs, "visionzip")
    monkeypatch.setattr(_tower, "SCORES", 700)
    for ours, theirs in zip(read(name, sharp(name), inputs, "visionzip"), whole, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_of_a_tile_neither_gives_nor_receives_attention(implementation):
    vlm = copy.deepcopy(sharp("smolvlm"))
    vlm.set_attn_implementation(implementation)
    inputs = batch(vlm, [[1, Picture(64, 64), 5]])
    inputs["pixel_attention_mask"][:, :, 40:] = False  # 24 of 64 patches
    tower = copy.deepcopy(vlm.model.vision_model)
    tower.set_attn_implementation("eager")
    mask = inputs["pixel_attention_mask"][0, :, ::8, ::8].contiguous()
    attention = tower(inputs["pixel_values"][0], mask, output_attentions=True).attentions[-1]
    (got,) = read("smolvlm", vlm, inputs, "visionzip")
    wanted = attention.mean(1)[:, :40].mean(1)
    torch.testing.assert_close(got[..., 0], wanted, **CLOSE)
    assert not got[:, 40:, 0].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_parts_of_anyres_images_are_packed_by_the_stock_model(name):
    """LLaVA-OneVision shrinks maps of more than two tiles here."""
    vlm, family = model(name), family_of(model(name).config)
    generator = torch.Generator().manual_seed(0)
    for size in torch.randint(20, 400, (25, 2), generator=generator):
        inputs = batch(vlm, [[1, Picture(*size.tolist()), 5]])
        tiles = inputs["pixel_values"].shape[1]
        values = torch.randn(tiles, 16, 3, generator=generator)
        values[..., 2] = torch.arange(tiles)[:, None]
        given = {"image_sizes": inputs["image_sizes"]}
        columns = int((inputs["input_ids"] == 100).sum())
        images = family.layout(vlm.model, "image", given, [columns])
        (parts,) = family.parts(vlm.model, "image", given, images, [values])
        packed = naive.cells_of(name, vlm, inputs, list(values))
        got, seen = torch.zeros_like(packed), torch.zeros(len(packed))
        begins = [0, images[0][0].rows]
        for block, places, features in parts:
            got[begins[block] + places] = features
            seen[begins[block] + places] += 1
        torch.testing.assert_close(got, packed)
        newlines = images[0][1].grid[0]
        assert len(packed) == columns == seen.sum() + newlines
        assert seen.max() == 1
        width = images[0][1].grid[1]
        tail = torch.arange(begins[1] + width - 1, columns, width)
        assert not seen[tail].any()
        for number, part in enumerate(parts):  # one for each tile
            own = part.values[:, 2]
            assert abs(float(own.median()) - number) <= 0.5
            assert name == "llava_onevision" or (own == number).all()
        assert len(parts) == tiles


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"])
def test_parts_of_merged_patches_are_ordered_by_the_stock_model(name):
    vlm, family = model(name), family_of(model(name).config)
    prompts = [[1, Picture(150, 290), 5, Picture(56, 112), 6], [Picture(310, 90), 7]]
    inputs = batch(vlm, prompts)
    generator = torch.Generator().manual_seed(0)
    counts = [len(part) for part in naive.patch_values(name, vlm, inputs)]
    patches = [torch.randn(1, n, 3, generator=generator) for n in counts]
    wanted = naive.cells_of(name, vlm, inputs, [one[0] for one in patches])
    if not name.startswith("qwen"):
        patches = [torch.cat(patches)]
    images = family.layout(vlm.model, "image", inputs, [len(wanted)])
    parts = family.parts(vlm.model, "image", inputs, images, patches)
    torch.testing.assert_close(torch.cat([one.values for image in parts for one in image]), wanted)


@pytest.mark.parametrize("method", ["visionzip", "prumerge"])
def test_towers_whose_attention_cannot_be_read(method):
    vlm = build("llava")
    vlm.config.vision_feature_select_strategy = "full"  # CLS is a visual token
    with pytest.raises(SettingError, match=r"clip_vision_model.*there are .*divprune") as error:
        dpn.compress(vlm, projector=method, keep=0.5)
    assert "prumerge," not in str(error.value)
