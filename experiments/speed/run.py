"""The speed targets, each as the ratio of two things that run in turn in one process.

    python experiments/speed/run.py            # writes experiments/speed/results.json

1. router=none against Hugging Face's own model on the same weights and embeddings: within 5 %;
2. a training step with the static 2x2 pyramid at 64 visual tokens: at most 0.75 of router=none;
3. prefill, hidden 512, 8 layers, 576 + 64 tokens, batch 8, kernels mixed after layers 2 and 5:
   at most 0.85 of no compression.

A target is met if the interval of the median reaches it.
"""

import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from dpn import bench, build
from dpn.launch import compose
from dpn.metrics.speed import Ratio, compare

HERE = Path(__file__).parent
PAIRS = 24
WIDE = [
    "model.text.hidden_size=512",
    "model.text.intermediate_size=1376",
    "model.text.num_attention_heads=8",
    "model.vision.image_size=192",  # 24 x 24 = 576 tokens
]


def against_hugging_face(overrides: list[str]) -> tuple[Ratio, Ratio]:
    """Prefill forward and training step of router=none against HF's causal LM.

    The stock model gets the same rows as `inputs_embeds`, so that neither runs a vision tower: ours
    is fed text only.
    """
    config = compose("bench", ["router=none", *overrides]).config
    ours = build.bench_model(config, config.router)
    stock = AutoModelForCausalLM.from_config(ours.config.text_config, attn_implementation="sdpa")
    stock.model.load_state_dict(ours.language.state_dict())
    stock.lm_head.load_state_dict(ours.lm_head.state_dict())
    ids = torch.randint(5, 900, (2, 640) if overrides else (8, 128))
    labels = ids.clone()
    labels[:, :-32] = -100

    def forward(model):
        with torch.inference_mode():
            model(input_ids=ids, logits_to_keep=1, use_cache=False)

    def step(model, **inputs):
        model(**inputs).loss.backward()
        model.zero_grad(set_to_none=True)

    ours.eval(), stock.eval()
    assert torch.allclose(ours(ids[:2]).logits, stock(ids[:2]).logits, atol=1e-3), (
        "the two must compute the same"
    )
    forwards = compare(lambda: forward(ours), lambda: forward(stock), PAIRS)
    ours.train(), stock.train()
    steps = compare(
        lambda: step(ours, input_ids=ids, labels=labels),
        # HF computes logits of every row; asking for the supervised ones only is fair to it.
        lambda: step(stock, input_ids=ids, labels=labels[:, -33:], logits_to_keep=33),
        PAIRS,
    )
    return forwards, steps


def measure() -> Iterator[tuple[str, Ratio, float]]:
    """Each figure with the bound it has to reach."""
    request = compose("bench", ["router=static", f"pairs={PAIRS}", "batch_size=32"])
    step = bench.bench(request)["time/train_step"]
    yield "static 2x2 against none, training step, 64 visual tokens", step, 0.75
    for name, overrides in (("tiny", []), ("hidden 512", WIDE)):
        forward, step = against_hugging_face(overrides)
        yield f"none against Hugging Face, {name}, forward", forward, 1.05
        yield f"none against Hugging Face, {name}, training step", step, 1.05
    for backend in ("auto", "segments", "padded"):
        mixed = ["router=random", "router.layers=[2,5]", "train=false", f"attention={backend}"]
        request = compose("bench", [*mixed, *WIDE, f"pairs={PAIRS}"])
        prefill = bench.bench(request)["time/prefill"]
        yield f"mixed kernels against none, prefill, 576 + 64 rows, {backend}", prefill, 0.85


def main() -> None:
    torch.set_num_threads(2)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = []
    for name, ratio, bound in measure():
        met = ratio.low <= bound
        rows.append(
            {
                "figure": name,
                "ratio": round(ratio.ratio, 3),
                "interval": [round(ratio.low, 3), round(ratio.high, 3)],
                "target": bound,
                "met": met,
                "pairs": ratio.pairs,
            }
        )
        print(f"{'met   ' if met else 'missed'} {ratio} (target {bound}) {name}", flush=True)
        result = {"commit": commit, "torch": torch.__version__, "machine": platform.machine()}
        (HERE / "results.json").write_text(json.dumps(result | {"figures": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
