"""Naive statements of the projectors' rules on stock vision-language models: plain loops over one
image, attention of the tower from its own inputs, cells ordered by Hugging Face's own code.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

#: Attention module of each tower of `tests.vlms`: of the layer that outputs the visual tokens, and
#: of the one after it.
MODULES = {
    "llava": ("vision_tower.encoder.layers.1.self_attn", "vision_tower.encoder.layers.2.self_attn"),
    "llava_next": (
        "vision_tower.encoder.layers.1.self_attn",
        "vision_tower.encoder.layers.2.self_attn",
    ),
    "llava_onevision": ("vision_tower.encoder.layers.2.self_attn",) * 2,
    "internvl": ("vision_tower.encoder.layer.2.attention",) * 2,
    "smolvlm": ("vision_model.encoder.layers.2.self_attn",) * 2,
    "qwen2_vl": ("visual.blocks.1.attn",) * 2,
    "qwen2_5_vl": ("visual.blocks.1.attn",) * 2,
    "qwen3_vl": ("visual.blocks.3.attn",) * 2,
}
HAS_CLS = ("llava", "llava_next", "internvl")


def turned(x, cos, sin):
    """Rotate `[n, H, d]` by angles `[n, d]`."""
    half = x.shape[-1] // 2
    other = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + other * sin[:, None]


def queries_and_keys(module, hidden, rotary=None):
    """Return `[n, H, d]` each of one picture or frame, given `[n, C]`."""
    heads = module.num_heads
    if rotary is not None:
        n = len(hidden)
        q, k, _ = module.qkv(hidden).view(n, 3, heads, -1).unbind(1)
        return turned(q, *rotary), turned(k, *rotary)
    return tuple(proj(hidden).unflatten(-1, (heads, -1)) for proj in (module.q_proj, module.k_proj))


def patch_values(name, vlm, inputs, after=0, one_softmax=False):
    """Return `[n, 1 + C]` for each picture, tile or frame: what its patches receive, and keys."""
    module = vlm.model.get_submodule(MODULES[name][after])
    seen = []

    def note(_, args, kw):
        hidden = args[0] if args else kw["hidden_states"]
        if (rotary := kw.get("position_embeddings")) is None:
            seen.extend(queries_and_keys(module, one) for one in hidden)
            return
        ends = kw["cu_seqlens"].tolist()
        for begin, end in pairwise(ends):
            part = slice(begin, end)
            angles = [x[part] for x in rotary]
            seen.append(queries_and_keys(module, hidden[part], angles))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    encode(name, vlm, inputs)
    hook.remove()
    found = []
    for q, k in seen:
        flat = k.flatten(1)
        if one_softmax:
            q, k = q.flatten(1)[:, None], k.flatten(1)[:, None]
        asking = range(1) if name in HAS_CLS else range(len(q))
        received = torch.zeros(len(k))
        for h in range(q.shape[1]):
            for i in asking:
                scores = k[:, h] @ q[i, h] / math.sqrt(q.shape[-1])
                received += scores.softmax(0) / (q.shape[1] * len(asking))
        cls = int(name in HAS_CLS)
        found.append(torch.cat([received[:, None], flat], 1)[cls:])
    return found


def encode(name, vlm, inputs):
    names = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    further = ("batch_num_images",) if name == "llava_onevision" else ()
    given = {key: inputs[key] for key in (*names, *further) if key in inputs}
    return vlm.model.get_image_features(**given)


class _Mean(torch.nn.Module):
    """Stands for a merger: the mean of every four patches."""

    def forward(self, x, *_):
        return x.view(-1, 4, x.shape[-1]).mean(1)


def cells_of(name, vlm, inputs, patches):
    """Order features of patches `[n, F]` of each run as the model orders its visual tokens, using
    its own code. Returns `[cells, F]` for all images together; zeros for newline tokens.
    """
    width = patches[0].shape[1]
    if name in ("llava_next", "llava_onevision"):
        tiles, sizes, images = torch.stack(patches), inputs["image_sizes"], []
        for size in sizes:
            count = image_size_to_num_patches(size.tolist(), vlm.config.image_grid_pinpoints, 56)
            images.append(tiles[:count])
            tiles = tiles[count:]
        assert not len(tiles)
        further = {"vision_feature_select_strategy": "full"}
        if name == "llava_onevision":
            further = {"vision_aspect_ratio": vlm.config.vision_aspect_ratio}
        newline = torch.zeros(width)
        rows, _ = vlm.model.pack_image_features(images, sizes, image_newline=newline, **further)
        return torch.cat(list(rows))
    if name in ("internvl", "smolvlm"):
        tiles = torch.stack(patches)
        if name == "internvl":
            side = math.isqrt(tiles.shape[1])
            mixed = vlm.model.pixel_shuffle(tiles.unflatten(1, (side, side)), 0.5).flatten(0, 2)
        else:
            mixed = vlm.model.connector.pixel_shuffle(tiles, 4).flatten(0, 1)
        return mixed.unflatten(-1, (-1, width)).mean(1)
    if name.startswith("qwen"):
        return _merged(vlm.model.visual, inputs, torch.cat(patches))
    return torch.cat(patches)


def _merged(visual, inputs, values):
    """Let a tower of Qwen merge and order values of patches in place of its last features."""
    width = visual.blocks[-1].norm1.weight.shape[0]
    merger, visual.merger = visual.merger, _Mean()
    hook = visual.blocks[-1].register_forward_hook(lambda *_: current[0])
    done = []
    try:
        for begin in range(0, values.shape[1], width):
            some = values[:, begin : begin + width]
            current = [F.pad(some, (0, width - some.shape[1]))]
            out = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
            done.append(out.pooler_output[:, : some.shape[1]])
    finally:
        visual.merger = merger
        hook.remove()
    return torch.cat(done, 1)


# The rules. Each returns (cells, vector) of every row of an image, given `image`:
#   x       tokens of all its cells, `[n, D]`
#   blocks  (first cell, height, width, whether lines end with a newline token) of its grids
#   tiles   cells of each tile
#   seen    attention that each cell receives, `[n]`
#   keys    keys of each cell, `[n, C]`
#   heads   number of heads of the tower


def pooled(image, kernel=(2, 2), reduce="max"):
    rows = []
    for start, height, width, tail in image.blocks:
        body = width - tail
        for top in range(0, height, kernel[0]):
            lines = range(top, min(top + kernel[0], height))
            for left in range(0, body, kernel[1]):
                columns = range(left, min(left + kernel[1], body))
                cells = [start + r * width + c for r in lines for c in columns]
                part = image.x[cells]
                rows.append((cells, part.amax(0) if reduce == "max" else part.mean(0)))
            if tail:
                cells = [start + r * width + body for r in lines]
                rows.append((cells, image.x[cells].mean(0)))
    return rows


def each_token(image):
    return [([i], x) for i, x in enumerate(image.x)]


def divprune(image, keep):
    x, n = image.x, len(image.x)
    apart = [[1 - float(F.cosine_similarity(a, b, dim=0)) for b in x] for a in x]
    first = [min(apart[i][j] for j in range(n) if j != i) for i in range(n)]
    picked = [max(range(n), key=first.__getitem__)]
    while len(picked) < max(1, round(keep * n)):
        rest = [i for i in range(n) if i not in picked]
        picked.append(max(rest, key=lambda i: min(apart[i][j] for j in picked)))
    return [([i], x[i]) for i in picked]


def visionzip(image, keep):
    rows = []
    for tile in image.tiles:
        total = max(1, round(keep * len(tile)))
        contextual = round(total * 10 / 64)
        order = sorted(tile, key=lambda i: -float(image.seen[i]))
        top = order[: total - contextual]
        rows += [([i], image.x[i]) for i in top]
        rest = [i for i in tile if i not in top]
        anchors = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else []
        mean = image.keys.view(len(image.keys), image.heads, -1).mean(1)
        groups = {a: [] for a in anchors}
        for i in rest:
            if anchors and i not in anchors:
                near = [float(F.cosine_similarity(mean[i], mean[a], dim=0)) for a in anchors]
                groups[anchors[int(np.argmax(near))]].append(i)
        for a, group in groups.items():
            rows.append(([a, *group], image.x[a] + (image.x[group].mean(0) if group else 0)))
    return rows


def prumerge(image, keep, neighbours):
    rows = []
    for tile in image.tiles:
        order = sorted(tile, key=lambda i: -float(image.seen[i]))
        kept = order[: max(1, round(keep * len(tile))) - 1]
        for i in kept:
            others = [j for j in tile if j != i]
            others.sort(key=lambda j: -float(F.cosine_similarity(image.keys[i], image.keys[j], 0)))
            near = [image.seen[j] * image.x[j] for j in others[:neighbours]]
            rows.append(([i], image.x[i] + sum(near)))
        rest = [i for i in tile if i not in kept]
        rows.append((rest, sum(image.seen[i] * image.x[i] for i in rest)))
    return rows


def images_of(name, x, spans, values=None, heads=2, patches=1):
    """Return the images of a batch for the rules above.

    Args:
        name: Name of the model.
        x: Tokens of all visual columns, `[V, D]`.
        spans: Spans of the record.
        values: Features of all cells: attention and keys, then the tile and whether it is one.
        heads: Number of heads of the tower.
        patches: Number of patches of a token.
    """
    images, done = {}, 0
    for span in spans:
        (height, width), cells = span.source, span.source[0] * span.source[1]
        image = images.setdefault(span.image, SimpleNamespace(x=[], blocks=[], columns=[]))
        start, second = len(image.columns), len(image.blocks) == 1
        tail = int(name in ("llava_next", "llava_onevision") and second)
        image.blocks.append((start, height, width, tail))
        image.columns += [(span.sample, span.column + i) for i in range(cells)]
        image.x.append(x[done : done + cells])
        if values is not None:
            image.values = [*getattr(image, "values", []), values[done : done + cells]]
        done += cells
    assert done == len(x)
    for image in images.values():
        image.x = torch.cat(image.x)
        if values is not None:
            every = torch.cat(image.values)
            image.seen, image.keys, image.heads = every[:, 0] * patches, every[:, 1:-2], heads
            numbers = [int(t) if is_cell else None for t, is_cell in every[:, -2:].tolist()]
            image.tiles = [
                [i for i, other in enumerate(numbers) if other == one]
                for one in sorted({n for n in numbers if n is not None})
            ]
    return list(images.values())
