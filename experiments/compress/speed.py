"""Time stock and compressed models in turn on a CPU.

    OMP_NUM_THREADS=1 python -m experiments.compress.speed    # writes speed.jsonl

The model is a Qwen2.5-VL with random weights: a decoder of 16 layers that is 512 wide, and a vision
tower so small that its time hardly counts. Batches have one prompt with 1024 visual tokens, and
four with 1024, 256, 64 and 64, padded on the left. Each line has the time of a compressed model
divided by that of the stock model (median of 5 pairs with its 95 % interval): of a prefill, and of
an answer of 32 tokens, prefill included.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import dpn
from dpn.common.progress import Bar
from dpn.metrics.speed import compare
from dpn.runs.commit import commit

HERE = Path(__file__).parent
PAIRS, NEW_TOKENS = 5, 32
IMAGE, START, END, PAD = 100, 102, 103, 0
#: Visual tokens along the side of each prompt's image.
BATCHES = {"1024": (32,), "1024, 256, 64, 64": (32, 16, 8, 8)}
METHODS: dict[str, dict[str, Any]] = {
    "router=none": {},
    "router=fastv keep=0.5": {"router": "fastv", "keep": 0.5},
    "router=pyramid_drop keep=0.3": {"router": "pyramid_drop", "keep": 0.3},
    "router=static keep=0.4": {"router": "static", "keep": 0.4},
    "projector=pooled kernel=[2,2]": {"projector": "pooled", "kernel": [2, 2]},
}


def build() -> Any:
    """Build the stock model."""
    width, merge = 512, 2
    text = {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": 128,
        "hidden_size": width,
        "intermediate_size": 1408,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [8, 12, 12],
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": PAD,
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": merge,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "out_hidden_size": width,
    }
    ids = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, video_token_id=101, **ids)
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def batch(sides: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Make a batch of prompts with one image of side x side visual tokens each."""
    prompts = [[1, 5, START, *[IMAGE] * side**2, END, *range(7, 23)] for side in sides]
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    patches = sum((2 * side) ** 2 for side in sides)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "pixel_values": torch.randn(patches, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side] for side in sides]),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }


@torch.inference_mode()
def prefill(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Run a prompt."""
    model(**inputs, logits_to_keep=1)


@torch.inference_mode()
def answer(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Run a prompt and generate an answer."""
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    model.generate(**inputs, **length, do_sample=False)


def main() -> None:
    """Measure every method on every batch."""
    stock = build()
    tasks: dict[str, Callable[..., None]] = {"prefill": prefill, "answer": answer}
    lines = []
    bar = Bar("pairs", len(BATCHES) * len(METHODS) * len(tasks))
    for tokens, sides in BATCHES.items():
        inputs = batch(sides)
        for name, arguments in METHODS.items():
            fast = dpn.compress(stock, **arguments)
            found: dict[str, Any] = {"tokens": tokens, "method": name, "commit": commit()}
            for task, run in tasks.items():
                calls = partial(run, fast, inputs), partial(run, stock, inputs)
                found[task] = asdict(compare(*calls, pairs=PAIRS, warmup=1))
                bar.move(len(lines) * len(tasks) + len(found) - 3)
            found["share"] = fast.dpn.trace.share
            lines.append(json.dumps(found))
            (HERE / "speed.jsonl").write_text("\n".join(lines) + "\n")
    bar.close()


if __name__ == "__main__":
    main()
