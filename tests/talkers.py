"""Tiny models with a tokenizer, for tests that talk to them; what they say makes no sense."""

import numpy as np
import torch
from PIL import Image

from dpn import DPNConfig, DPNForConditionalGeneration, DPNProcessor, inference
from dpn.data.tokenizer import train_tokenizer
from tests.data.conftest import CORPUS
from tests.tiny import VISION, text_config


def make_talker(router=None, template="v1"):
    """Model and processor; `<ROUTER>` is used."""
    processor = DPNProcessor(train_tokenizer(CORPUS), template, image_size=16, patch_size=4)
    torch.manual_seed(0)
    text = text_config(
        processor.vocab_size,
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.pad_token_id,
    )
    config = DPNConfig(
        text_config=text,
        vision_config=VISION,
        router_config=router or {"name": "none"},
        image_token_id=processor.image_token_id,
        router_token_id=processor.router_token_id,
    )
    model = DPNForConditionalGeneration(config).eval()
    model.generation_config.suppress_tokens.append(processor.pad_token_id)  # no one says that
    return model, processor


def make_run(folder, router):
    """What a run leaves: its model in `model`; and pictures `0.png`, `1.png`, `broken.png`."""
    inference.save(*make_talker(router), folder / "model")
    for number in range(2):
        picture(number).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no image")
    return folder


def picture(seed=0, width=16, height=20):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)
