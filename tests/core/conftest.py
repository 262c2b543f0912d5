"""Tiny models with 4 layers and 4-pixel patches, and batches with samples of all kinds."""

import pytest
import torch

from dpn import DPNConfig, DPNForConditionalGeneration
from tests.tiny import VISION, text_config

IMAGE, ROUTER, VOCABULARY = 48, 49, 50


def make_model(router=None, projector=None, seed=0, layers=4, text=None, **kwargs):
    """Build a model with weights large enough to make errors visible."""
    torch.default_generator.manual_seed(seed)  # CPU only; seeding all devices takes half a ms
    text = text or text_config(
        VOCABULARY, num_hidden_layers=layers, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    config = DPNConfig(
        text_config=text,
        vision_config=VISION,
        projector_config=projector or {"name": "mlp"},
        router_config=router or {"name": "none"},
        image_token_id=IMAGE,
        router_token_id=ROUTER,
        **kwargs,
    )
    model = DPNForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("router.gates") or name.startswith("vision"):
                p.mul_(3.0)
    return model


#: (columns of text and images as a string, image sizes): i image, r <ROUTER>, t text, a answer.
SAMPLES = [
    ("ttitttraat", [(16, 16)]),
    ("titrait", [(8, 16), (12, 20)]),
    ("tttttaaa", []),
    ("itttttttttrataatraa", [(16, 16)]),
    ("tiir" + "a", [(4, 8), (16, 12)]),
]


def make_samples(which=None, seed=1):
    """Return samples as (ids, labels, images)."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for index in range(len(SAMPLES)):
        pattern, sizes = SAMPLES[index]
        ids = torch.randint(3, IMAGE, (len(pattern),), generator=g)
        ids[torch.tensor([c == "i" for c in pattern])] = IMAGE
        ids[torch.tensor([c == "r" for c in pattern])] = ROUTER
        labels = torch.where(torch.tensor([c == "a" for c in pattern]), ids, -100)
        images = [torch.randn(3, h, w, generator=g) for h, w in sizes]
        out.append((ids, labels, images))
    return out if which is None else [out[i] for i in which]


def collate(samples, side="right"):
    """Return the tensors of a batch."""
    width = max(len(ids) for ids, _, _ in samples)

    def padded(rows, value):
        full = torch.full((len(rows), width), value)
        for b, row in enumerate(rows):
            start = 0 if side == "right" else width - len(row)
            full[b, start : start + len(row)] = row
        return full

    images = [(b, image) for b, (_, _, own) in enumerate(samples) for image in own]
    batch = {
        "input_ids": padded([s[0] for s in samples], 0),
        "attention_mask": padded([torch.ones_like(s[0]) for s in samples], 0),
        "labels": padded([s[1] for s in samples], -100),
    }
    if images:
        height = max(i.shape[1] for _, i in images)
        length = max(i.shape[2] for _, i in images)
        pixels = torch.zeros(len(images), 3, height, length)
        for place, (_, image) in enumerate(images):
            pixels[place, :, : image.shape[1], : image.shape[2]] = image
        batch["pixel_values"] = pixels
        batch["image_sizes"] = torch.tensor([list(i.shape[1:]) for _, i in images])
        batch["image_sample"] = torch.tensor([b for b, _ in images])
    return batch


def without(batch, *names):
    """Return a batch without some of its tensors."""
    return {k: v for k, v in batch.items() if k not in names}


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)


#: Types of stock models that differ most: newline tokens, DeepStack with three axes, tiles.
FEW = ("llava_next", "qwen3_vl", "smolvlm")


def few(names):
    """Parameters of a test for each of some stock models; those that are not in FEW are slow."""
    return [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in names]
