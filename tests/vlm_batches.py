"""Batches for the models of `tests.vlms`, made by hand: no processor has to be downloaded.

A prompt is a list of token ids, `Picture`s and `Clip`s; `batch` makes of several prompts what the
processor of the family would.
"""

import math
from typing import NamedTuple

import torch
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

IMAGE, VIDEO, START, END, MARK, STAMP, PAD = 100, 101, 102, 103, 104, 105, 0
TILE = 56  # pixels of a tile's side


class Picture(NamedTuple):
    """An image of some pixels; families round or tile it in their own way."""

    height: int = 56
    width: int = 56


class Clip(NamedTuple):
    """A video; for Qwen2-VL to Qwen3-VL, a frame stands for a pair of frames."""

    frames: int = 3
    height: int = 56
    width: int = 56


def _pixels(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _grid(picture, patch):
    return [2 * max(1, round(pixels / 2 / patch)) for pixels in picture[-2:]]


def _tiles(picture):
    tiles = math.ceil(picture.height / TILE) * math.ceil(picture.width / TILE)
    return tiles + (tiles > 1)


def _fill(tiles, shape):
    """Stack `[n_i, ...]` to `[I, longest, ...]`, zeros at the end."""
    out = torch.zeros(len(tiles), max(map(len, tiles)), *shape)
    for row, some in zip(out, tiles, strict=True):
        row[: len(some)] = some
    return out


class _Qwen:
    """Qwen2-VL to Qwen3-VL: patches of all images in one tensor, and their grids."""

    def columns(self, vlm, part, alone):
        frame = math.prod(_grid(part, self._patch(vlm))) // 4
        if isinstance(part, Picture):
            return [START, *[IMAGE] * frame, END]
        if vlm.config.model_type == "qwen3_vl":  # a time stamp before every frame
            return [STAMP, START, *[VIDEO] * frame, END] * part.frames
        return [START, *[VIDEO] * frame * part.frames, END]

    def _patch(self, vlm):
        return vlm.config.vision_config.patch_size

    def tensors(self, vlm, counts, images, clips, ids):
        out = {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}
        for kind, end, parts in (("image", "", images), ("video", "_videos", clips)):
            if parts:
                patch = self._patch(vlm)
                grids = [[getattr(part, "frames", 1), *_grid(part, patch)] for part, _ in parts]
                pixels = [
                    _pixels(math.prod(grid), 3 * 2 * patch**2, seed=seed)
                    for grid, (_, seed) in zip(grids, parts, strict=True)
                ]
                out[f"pixel_values{end}"] = torch.cat(pixels)
                out[f"{kind}_grid_thw"] = torch.tensor(grids)
        if clips and vlm.config.model_type == "qwen2_5_vl":
            out["second_per_grid_ts"] = torch.tensor([0.5 + seed % 3 for _, seed in clips])
        return out


class _Llava:
    """LLaVA-1.5 and VipLLaVA: 4 x 4 tokens for each image."""

    def columns(self, vlm, part, alone):
        return [IMAGE] * 16

    def tensors(self, vlm, counts, images, clips, ids):
        pixels = [_pixels(3, TILE, TILE, seed=seed) for _, seed in images]
        return {"pixel_values": torch.stack(pixels)} if pixels else {}


class _Next:
    """LLaVA-NeXT, its video model and LLaVA-OneVision: an overview and tiles, `image_sizes`."""

    def columns(self, vlm, part, alone):
        nested = vlm.config.model_type == "llava_onevision"
        if isinstance(part, Clip):  # 4 x 4 patches, pooled to 2 x 2
            return [VIDEO] * (part.frames * 4 + nested)
        if nested and not alone:
            return [IMAGE] * 17
        pixels = torch.zeros(1, self._tiles(vlm, part, alone), 3, TILE, TILE)
        with torch.no_grad():
            out = vlm.model.get_image_features(pixels, torch.tensor([part]))
        return [IMAGE] * len(out.pooler_output[0])

    def _tiles(self, vlm, picture, alone):
        if vlm.config.model_type == "llava_onevision" and not alone:
            return 1  # several images of one sample are not tiled
        return image_size_to_num_patches(list(picture), vlm.config.image_grid_pinpoints, TILE)

    def tensors(self, vlm, counts, images, clips, ids):
        out = {}
        if images:
            alone = [n == 1 for n in counts for _ in range(n)]
            tiles = [
                _pixels(self._tiles(vlm, part, one), 3, TILE, TILE, seed=seed)
                for (part, seed), one in zip(images, alone, strict=True)
            ]
            out["pixel_values"] = _fill(tiles, (3, TILE, TILE))
            out["image_sizes"] = torch.tensor([list(part) for part, _ in images])
            if vlm.config.model_type == "llava_onevision":
                out["batch_num_images"] = torch.tensor([n for n in counts if n])
        if clips:  # of equally many frames
            pixels = [_pixels(part.frames, 3, TILE, TILE, seed=seed) for part, seed in clips]
            out["pixel_values_videos"] = torch.stack(pixels)
        return out


class _InternVL:
    """InternVL: tiles of 4 tokens in one run; the frames of a video are images."""

    def columns(self, vlm, part, alone):
        if isinstance(part, Clip):
            return [STAMP, START, *[IMAGE] * 4, END] * part.frames
        return [START, *[IMAGE] * (4 * _tiles(part)), END]

    def tensors(self, vlm, counts, images, clips, ids):
        pixels = [_pixels(_tiles(part), 3, TILE, TILE, seed=seed) for part, seed in images]
        return {"pixel_values": torch.cat(pixels)} if pixels else {}


class _Idefics3:
    """Idefics3 and SmolVLM: tiles of 4 tokens, each one a run; tiles by sample, zero-padded."""

    def columns(self, vlm, part, alone):
        return [START, MARK, *[IMAGE] * 4] * _tiles(part) + [END]

    def tensors(self, vlm, counts, images, clips, ids):
        if not images:
            return {}
        rest = [_pixels(_tiles(part), 3, 64, 64, seed=seed) for part, seed in images]
        tiles = []
        for n in counts:
            tiles.append(torch.cat([torch.zeros(0, 3, 64, 64), *rest[:n]]))
            rest = rest[n:]
        pixels = _fill(tiles, (3, 64, 64))
        mask = torch.ones(*pixels.shape[:2], 64, 64, dtype=torch.bool)
        return {"pixel_values": pixels, "pixel_attention_mask": mask}


_MAKERS = {
    "llava": _Llava(),
    "vipllava": _Llava(),
    "llava_next": _Next(),
    "llava_next_video": _Next(),
    "llava_onevision": _Next(),
    "qwen2_vl": _Qwen(),
    "qwen2_5_vl": _Qwen(),
    "qwen3_vl": _Qwen(),
    "internvl": _InternVL(),
    "smolvlm": _Idefics3(),
    "idefics3": _Idefics3(),
}


def batch(vlm, prompts, side="left", seed=0):
    """Return the inputs of several prompts.

    Args:
        vlm: The model.
        prompts: Prompts, each a list of token ids below 100, `Picture`s and `Clip`s.
        side: Side of the padding.
        seed: Seed of the first image's pixels; the next one has the next seed.
    """
    make, columns, counts, images, clips = _MAKERS[vlm.config.model_type], [], [], [], []
    for prompt in prompts:
        parts = [part for part in prompt if not isinstance(part, int)]
        counts.append(sum(isinstance(part, Picture) for part in parts))
        for part in parts:
            seed += 1
            (images if isinstance(part, Picture) else clips).append((part, seed - 1))
        alone = counts[-1] == 1
        pieces = [[x] if isinstance(x, int) else make.columns(vlm, x, alone) for x in prompt]
        columns.append([token for piece in pieces for token in piece])
    if vlm.config.model_type == "internvl":
        images, clips, counts = _frames(prompts, seed - len(images) - len(clips)), [], []
    longest = max(map(len, columns))
    padded = [_pad(row, [PAD] * (longest - len(row)), side) for row in columns]
    mask = [_pad([1] * len(row), [0] * (longest - len(row)), side) for row in columns]
    ids = torch.tensor(padded)
    tensors = make.tensors(vlm, counts, images, clips, ids)
    return {"input_ids": ids, "attention_mask": torch.tensor(mask), **tensors}


def _pad(row, padding, side):
    return padding + row if side == "left" else row + padding


def _frames(prompts, seed):
    """Return the images of InternVL prompts, the frames of their videos among them."""
    images = []
    for part in (part for prompt in prompts for part in prompt if not isinstance(part, int)):
        frames = part.frames if isinstance(part, Clip) else 1
        images += [
            (Picture() if isinstance(part, Clip) else part, seed + 50 * i) for i in range(frames)
        ]
        seed += 1
    return images


def fresh(inputs):
    """Copy inputs: `generate` and some models change the dictionary or tensors they are given."""
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def shown(inputs):
    """Return the columns that are not padding, bool `[B, T]`."""
    return inputs["attention_mask"].bool()


def is_text(inputs):
    """Return the columns that hold text, bool `[B, T]`."""
    ids = inputs["input_ids"]
    return shown(inputs) & (ids != IMAGE) & (ids != VIDEO)
