"""Where families say that their grids are, held against transformers' own vision towers."""

import random

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

import dpn
from dpn.common.errors import SettingError
from dpn.families import Block, family_of, place_spans
from tests import vlms
from tests.vlm_batches import TILE, fresh
from tests.vlms import Clip, Picture

NEXT = ("llava_next", "llava_next_video", "llava_onevision")
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def layout(name, **images):
    """Return the blocks of each encoded image and the tokens of transformers."""
    out = dpn.compress(vlms.model(name)).model.get_image_features(**images)
    return out.dpn_layout, list(out.pooler_output)


def rows(image):
    return sum(block.rows for block in image)


def random_sizes(seed, count=40):
    draw = random.Random(seed)
    return [[draw.randint(8, 400), draw.randint(8, 400)] for _ in range(count)]


def anyres(name, sizes, nested=()):
    """Return the arguments of `get_image_features` for images of some sizes."""
    pinpoints = vlms.model(name).config.image_grid_pinpoints
    most = max(image_size_to_num_patches(size, pinpoints, TILE) for size in sizes)
    images = {
        "pixel_values": torch.randn(len(sizes), most, 3, TILE, TILE),
        "image_sizes": torch.tensor(sizes),
    }
    return images | ({"batch_num_images": torch.tensor(nested)} if nested else {})


@pytest.mark.parametrize("name", NEXT)
def test_tokens_of_random_sizes(name):
    sizes = random_sizes(1)
    images, tokens = layout(name, **anyres(name, sizes))
    assert [rows(image) for image in images] == list(map(len, tokens))
    maps = [block for _, *rest in images for block in rest]
    assert len({block.grid for block in maps}) > 8  # the sizes differ
    assert all(block.tail == (block.grid[1] > 1) for block in maps)


@pytest.mark.parametrize("name", NEXT)
def test_tokens_of_extreme_sizes(name):
    """Nothing remains of the map of a very flat image, and newline tokens of a very narrow one."""
    images, tokens = layout(name, **anyres(name, [[4, 400], [400, 4]]))
    assert [rows(image) for image in images] == list(map(len, tokens))
    assert [len(image) for image in images] == [1, 2]
    assert images[1][1].grid[1] == 1


def test_tokens_of_nested_images():
    sizes, nested = random_sizes(2), [1, 3, 1, 2, 30, 1, 2]
    images, tokens = layout("llava_onevision", **anyres("llava_onevision", sizes, nested))
    assert [rows(image) for image in images] == list(map(len, tokens))
    alone = [n == 1 for n in nested for _ in range(n)]
    assert [image == (Block((4, 4)), Block((1, 1))) for image in images] == [not x for x in alone]


def test_large_images_of_onevision_are_shrunk():
    images, tokens = layout("llava_onevision", **anyres("llava_onevision", [[112, 112]]))
    assert images[0][1] == Block((5, 6), 1)  # of 8 x 8, at most twice the tokens of a tile
    ratio = {"vision_aspect_ratio": "anyres_max_9"}
    images, tokens = layout("llava_onevision", **anyres("llava_onevision", [[112, 112]]), **ratio)
    assert images[0][1] == Block((8, 9), 1)
    assert rows(images[0]) == len(tokens[0])


@pytest.mark.parametrize("name", NEXT)
def test_maps_are_in_raster_order_and_their_last_column_is_the_newline(name):
    """`pack_image_features` gets tokens that name their place in the map of all tiles."""
    vlm = vlms.model(name)
    sizes = [size for size in random_sizes(3, 20) if max(size) < 8 * min(size)]
    images, _ = layout(name, **anyres(name, sizes))
    newline = torch.tensor([-7.0, -7.0])
    for size, image in zip(sizes, images, strict=True):
        tiles = _named_tiles(name, size)
        options = {"vision_feature_select_strategy": "default"}
        if name == "llava_onevision":
            options = {"vision_aspect_ratio": vlm.config.vision_aspect_ratio}
        (packed,), _ = vlm.model.pack_image_features(
            [tiles], [size], image_newline=newline, **options
        )
        base, map_ = packed.split([block.rows for block in image])
        assert (base == -1).all()
        lines = map_.unflatten(0, image[1].grid)  # [h, w + 1, 2]
        assert (lines[:, -1] == newline).all()
        y, x = lines[:, :-1].unbind(-1)
        torch.testing.assert_close(y, y[:, :1].expand_as(y))
        torch.testing.assert_close(x, x[:1].expand_as(x))
        assert (y[:, 0].diff() > 0.5).all()
        assert (x[0].diff() > 0.5).all()


def _named_tiles(name, size):
    """Return `[1 + tiles, 16, 2]`: -1 in the overview, else line and column in the whole map."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    pinpoints = vlms.model(name).config.image_grid_pinpoints
    down, across = get_anyres_image_grid_shape(size, pinpoints, TILE)
    places = torch.stack(
        torch.meshgrid(torch.arange(4.0 * down), torch.arange(4.0 * across), indexing="ij"), -1
    )
    tiles = places.unflatten(1, (across, 4)).unflatten(0, (down, 4)).transpose(1, 2)
    return torch.cat([torch.full((1, 16, 2), -1.0), tiles.reshape(-1, 16, 2)])


def test_newline_tokens_are_the_models_own():
    vlm = vlms.model("llava_next")
    images, tokens = layout("llava_next", **anyres("llava_next", random_sizes(4, 6)))
    for image, found in zip(images, tokens, strict=True):
        lines = found[image[0].rows :].unflatten(0, image[1].grid)
        assert (lines[:, -1] == vlm.model.image_newline).all()
        assert (lines[:, :-1] != vlm.model.image_newline).any(-1).all()


@pytest.mark.parametrize("name", QWEN)
def test_every_grid_of_qwen_models(name):
    patch = vlms.model(name).config.vision_config.patch_size
    sides = (2, 4, 6, 10)
    grids = [[1, h, w] for h in sides for w in sides]
    pixels = torch.randn(sum(h * w for _, h, w in grids), 6 * patch**2)
    images, tokens = layout(name, pixel_values=pixels, image_grid_thw=torch.tensor(grids))
    assert [image[0].grid for image in images] == [(h // 2, w // 2) for _, h, w in grids]
    assert [rows(image) for image in images] == list(map(len, tokens))


@pytest.mark.parametrize("name", vlms.VIDEO_NAMES)
def test_videos_have_a_block_for_each_frame(name):
    vlm = vlms.model(name)
    inputs = vlms.batch(vlm, [[1, 5, Clip(5, 56, 112), 7]])
    small = dpn.compress(vlm)
    small(**fresh(inputs))
    spans = small.dpn.trace.spans
    newline = [(1, 1)] if name == "llava_onevision" else []
    frame = (2, 4) if name in ("qwen2_vl", "qwen2_5_vl") else (2, 2)
    frame = (2, 4) if name == "qwen3_vl" else frame
    assert [span.grid for span in spans] == [frame] * 5 + newline
    images = [span.image for span in spans]
    assert images == (list(range(5)) if name == "internvl" else [0] * len(spans))


@pytest.mark.parametrize("name", QWEN)
def test_tokens_of_qwen_models_are_in_raster_order(name):
    """A spot in the image changes the token of its place most."""
    vlm, cell = vlms.model(name), 2 * vlms.model(name).config.vision_config.patch_size
    size = {"shortest_edge": 1, "longest_edge": 10**6}
    processor = Qwen2VLImageProcessorPil(patch_size=cell // 2, size=size)
    plain = np.full((4 * cell, 6 * cell, 3), 90, np.uint8)
    spots = [(0, 0), (0, 5), (1, 2), (3, 4)]
    pictures = [plain.copy() for _ in spots]
    for picture, (y, x) in zip(pictures, spots, strict=True):
        picture[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] = (255, 0, 0)
    inputs = processor([plain, *pictures], return_tensors="pt")
    images, tokens = layout(name, **inputs)
    assert images == [(Block((4, 6)),)] * 5
    for (y, x), found in zip(spots, tokens[1:], strict=True):
        change = (found - tokens[0]).norm(dim=-1).reshape(images[0][0].grid)
        assert divmod(int(change.argmax()), 6) == (y, x)
    assert vlm.config.vision_config.spatial_merge_size == 2


@pytest.mark.parametrize("name", ["llava", "vipllava", "internvl", "smolvlm", "idefics3"])
def test_tokens_of_tiles_are_in_raster_order(name):
    tiled = name in ("smolvlm", "idefics3")
    side = 64 if tiled else TILE
    plain = torch.full((1, 3, side, side), 0.1)
    (image,), (plain_tokens,) = layout(name, pixel_values=plain[None] if tiled else plain)
    height, width = image[0].grid
    assert rows(image) == plain_tokens.flatten(0, -2).shape[0]
    cell = side // height
    for y in range(height):
        for x in range(width):
            spot = plain.clone()
            spot[..., y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] = 2
            _, (tokens,) = layout(name, pixel_values=spot[None] if tiled else spot)
            change = (tokens - plain_tokens).norm(dim=-1).flatten()
            assert divmod(int(change.argmax()), width) == (y, x)


@pytest.mark.parametrize("name", ["internvl", "smolvlm", "idefics3"])
def test_every_run_of_tiles_is_an_image(name):
    """Tiles of one image are one run for InternVL, and one run each for SmolVLM and Idefics3."""
    vlm = vlms.model(name)
    prompts = [[1, Picture(112, 168), 4, Picture(56, 56)], [1], [1, 5, Picture(60, 50)]]
    small = dpn.compress(vlm)
    small(**vlms.batch(vlm, prompts))
    images = [(span.sample, span.image) for span in small.dpn.trace.spans]
    if name == "internvl":
        assert images == [(0, 0)] * 7 + [(0, 1)] + [(2, 2)] * 3
    else:
        assert images == [(0, i) for i in range(8)] + [(2, i) for i in range(8, 11)]


@pytest.mark.parametrize("name", vlms.NAMES)
def test_reference_grids(name):
    config = vlms.model(name).config
    blocks = family_of(config).reference(config)
    assert all(isinstance(block, Block) and block.rows for block in blocks)
    assert sum(block.rows for block in blocks) >= 16


# Placement


def place(ids, images, **options):
    options = {"placeholders": {"image": 1}, **options}
    return place_spans(np.array(ids), images=images, **options)


def test_beams_share_the_images_of_their_sample():
    two = [(Block((1, 2)),), (Block((1, 1)),)]
    ids = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    spans = place(ids, {"image": two})
    assert [(s.sample, s.image, s.column, s.rows) for s in spans] == [
        (0, 0, 0, 2),
        (1, 1, 0, 2),
        (4, 2, 2, 1),
        (5, 3, 2, 1),
    ]


def test_images_and_videos_in_the_order_of_their_columns():
    images = {"image": [(Block((1, 2)),)] * 2, "video": [(Block((1, 1)), Block((1, 1)))]}
    placeholders = {"image": 1, "video": 2}
    spans = place([[1, 1, 0, 2, 0, 2, 1, 1]], images, placeholders=placeholders)
    assert [(s.image, s.column) for s in spans] == [(0, 0), (1, 3), (1, 5), (2, 6)]


@pytest.mark.parametrize(
    ("ids", "image"),
    [
        ([[1, 1, 1, 0], [1, 0, 0, 0]], (Block((1, 2)),)),  # sample 1 lost a column to sample 0
        ([[1, 0, 1, 1], [0, 1, 0, 0]], (Block((1, 2)),)),  # text within an image
    ],
)
def test_images_that_do_not_fit_their_sample(ids, image):
    with pytest.raises(SettingError, match="Sample 0 has 3 image tokens, which do not fit"):
        place(ids, {"image": [image, image]})


def test_counts_that_differ():
    for ids in ([[1, 1, 1]], [[1, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]]):
        with pytest.raises(SettingError, match="image tokens, but the 1 encoded images have 2"):
            place(ids, {"image": [(Block((1, 2)),)]})
