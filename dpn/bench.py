"""FLOPs and speed of a model, next to the same one without compression: router=none, projector=mlp.

    python -m dpn.bench router=static
    python -m dpn.bench router=none projector=visionzip projector.keep=0.5
    python -m dpn.bench router=random train=false attention=segments

Weights and images are random; both models run in turn in one process and their ratio is told.
Absolute times are told on a GPU only, where nothing else runs.
"""

import json
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dpn import build, preflight
from dpn.config import Request
from dpn.cost import prefill_flops, visual_macs_ratio
from dpn.launch import front_door
from dpn.metrics.speed import Ratio, compare
from dpn.model import DPNForConditionalGeneration


@front_door("bench", preflight.check_bench)
def main(request: Request) -> None:
    """Command line of `python -m dpn.bench`."""
    print_result(bench(request))


def bench(request: Request) -> dict[str, Any]:
    """Measure; returns flat figures, times as `Ratio`s against no compression."""
    preflight.check_bench(request)
    config = request.config
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build.bench_model(config, config.router)
    plain = build.bench_model(config, {"name": "none"}, {"name": "mlp"})
    for each in (model, plain):
        each.to(device=device, dtype=getattr(torch, config.dtype)).attention = config.attention
    batch = make_batch(model, config.batch_size, config.text_columns, config.seed)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    result = cost_of(model, plain, batch, config.text_columns)
    result["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    result["time/prefill"] = compare(
        lambda: prefill(model, batch), lambda: prefill(plain, batch), config.pairs
    )
    if config.train:
        result["time/train_step"] = compare(
            lambda: train_step(model, batch), lambda: train_step(plain, batch), config.pairs
        )
    return result


def make_batch(
    model: DPNForConditionalGeneration, images: int, text_columns: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Samples of one image of the native size and random text; the last half of it is an answer."""
    generator = torch.Generator().manual_seed(seed)
    width = text_columns + 1
    ids = torch.randint(5, model.config.image_token_id, (images, width), generator=generator)
    ids[:, 1] = model.config.image_token_id
    ids[:, width // 2] = model.config.router_token_id
    labels = ids.clone()
    labels[:, : width // 2 + 1] = -100
    size = model.vision.image_size
    pixels = torch.randn(images, 3, size, size, generator=generator)
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


@torch.inference_mode()
def cost_of(
    model: DPNForConditionalGeneration,
    plain: DPNForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    text_columns: int,
) -> dict[str, Any]:
    """What the formulas say for the routes that the model takes in evaluation."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    traces = [each.eval()(**inputs, logits_to_keep=1).trace for each in (model, plain)]
    text = [text_columns] * len(batch["input_ids"])
    flops, base = (
        sum(prefill_flops(each, trace, text))
        for each, trace in zip((model, plain), traces, strict=True)
    )
    shares = visual_macs_ratio(traces[0], model.config.text_config)
    return {
        "cost/visual_macs_ratio": sum(shares) / len(shares),
        "cost/prefill_flops": flops / len(text),
        "cost/prefill_flops_ratio": flops / base,
        "rows": [sum(rows) / len(rows) for rows in traces[0].visual_rows],
    }


@torch.inference_mode()
def prefill(model: DPNForConditionalGeneration, batch: dict[str, torch.Tensor]) -> None:
    """A prompt into a fresh cache, logits of its last column."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    model.eval()(**inputs, use_cache=True, logits_to_keep=1)


def train_step(model: DPNForConditionalGeneration, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward."""
    model.train()(**batch).loss.backward()
    model.zero_grad(set_to_none=True)


def print_result(result: dict[str, Any]) -> None:
    """A table for people, then one line of JSON for programs."""
    table = Table("figure", "value", title="against no compression, median [95 % interval]")
    plain: dict[str, Any] = {}
    for name, value in result.items():
        if isinstance(value, Ratio):
            plain[name] = (
                vars(value)
                if result["device"] != "cpu"
                else {k: v for k, v in vars(value).items() if not k.endswith("_ms")}
            )
            shown = f"{value}"
            if result["device"] != "cpu":
                shown += f"  {value.candidate_ms:.2f} ms against {value.baseline_ms:.2f} ms"
        elif isinstance(value, list):
            plain[name], shown = value, " ".join(f"{rows:g}" for rows in value)
        else:
            plain[name], shown = value, f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(name, shown)
    Console().print(table)
    print(json.dumps(plain))


if __name__ == "__main__":
    main()
