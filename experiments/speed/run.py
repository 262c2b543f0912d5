"""Measure the speed targets, each as a ratio of two things that run in turn in one process.

    python experiments/speed/run.py                     # all rows that this machine can measure
    python experiments/speed/run.py released decode     # some rows
    python experiments/speed/run.py mixed --pairs 4     # a trial that is not saved

Figures are appended to results.jsonl. A target is met if the interval of the median reaches it. On
a CPU, a decoder of width 512 and 8 layers stands in for a large one: its matrix products cost more
than the calls.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from figure import Figure, append
from released import Released

from dpn import DPNConfig
from dpn.cost import costs
from dpn.measure.case import Case
from dpn.measure.contenders import (
    Batch,
    HuggingFace,
    Ours,
    answer,
    contenders,
    set_training,
    train_step,
)
from dpn.measure.dry_run import cost_of, make_batch, prefill
from dpn.measure.load import Load
from dpn.metrics.memory import ResourceMeter, peak_bytes
from dpn.metrics.speed import compare
from dpn.model.cross_entropy import cross_entropy

PAIRS = 24
TINY = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8}
WIDE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
HEADS = {96: 4, 512: 8, 4096: 32}
#: 24 x 24 tokens, as in LLaVA-1.5.
TOWER = {"name": "vit", "image_size": 192, "patch_size": 8, "width": 96, "depth": 2, "heads": 4}
STATIC = {"name": "static", "kernels": [2, 2]}  # after the first, second and third quarter
MIXED = {"name": "random", "layers": [2, 5], "min_rows": 1}


def config(text: dict[str, int], router: dict[str, Any], tower: Any = TOWER) -> DPNConfig:
    """Return the config of a Llama of a given size with a tower."""
    text = {"model_type": "llama", "vocab_size": 1024, **text}
    text["num_attention_heads"] = HEADS[text["hidden_size"]]
    size = text["vocab_size"]
    return DPNConfig(
        text_config=text,
        vision_config=tower,
        router_config=router,
        image_token_id=size - 2,
        router_token_id=size - 1,
    )


def case(router: dict[str, Any], pairs: int, **load: Any) -> Case:
    """Create a case of 8 samples (or as in `load`) of 576 visual and 64 text rows, wide decoder."""
    chosen = Load(pairs=pairs, **load)
    runners = contenders(config(WIDE, router), chosen, "cpu")
    del runners["hf"]
    return Case(runners, make_batch(runners["none"].model, chosen.batch_size, 64), chosen)


def uncompressed() -> Iterator[tuple[str, Ours, HuggingFace, Batch]]:
    """Yield both models without compression: tiny (64 visual rows) and wide (576); 64 text rows."""
    for name, text, pixels, samples in (("tiny", TINY, 64, 8), ("wide", WIDE, 192, 2)):
        tower = TOWER | {"image_size": pixels}
        runners = contenders(config(text, {"name": "none"}, tower), Load(), "cpu")
        none: Ours = runners["none"]
        yield name, none, runners["hf"], make_batch(none.model, samples, 64)


@torch.inference_mode()
def forward(runner: Ours | HuggingFace, batch: Batch) -> None:
    """Run a forward pass on all rows, without a cache."""
    if isinstance(runner, Ours):
        runner.model(**batch, logits_to_keep=1, use_cache=False)
    else:
        runner.text(inputs_embeds=runner.rows(batch), logits_to_keep=1, use_cache=False)


def none_forward(pairs: int) -> Iterator[Figure]:
    """Forward pass of all rows, logits of the last column: router=none against Hugging Face."""
    for name, ours, hf, batch in uncompressed():
        for runner in (ours, hf):
            set_training(runner, False)
        del batch["labels"]
        ratio = compare(partial(forward, ours, batch), partial(forward, hf, batch), pairs)
        yield Figure.of(f"none against Hugging Face, forward, {name}", ratio, 1.03)


def none_step(pairs: int) -> Iterator[Figure]:
    """Training step: router=none against Hugging Face, which computes logits of supervised rows."""
    for name, ours, hf, batch in uncompressed():
        for runner in (ours, hf):
            set_training(runner, True)
        step = partial(train_step, batch=batch)
        ratio = compare(partial(step, ours), partial(step, hf), pairs)
        yield Figure.of(f"none against Hugging Face, training step, {name}", ratio, 1.03)


def static_prefill(pairs: int) -> Iterator[Figure]:
    """Time ratio over FLOPs ratio of the prefill with a fixed 2x2 pyramid."""
    row = case(STATIC, pairs).answers(1)
    over = row["cost/prefill_flops_ratio"]
    name = f"static 2x2 pyramid, prefill: time over FLOPs ({over:.3f})"
    yield Figure.of(name, row["time/prefill"], 1.12, over)


def static_step(pairs: int) -> Iterator[Figure]:
    """Time ratio over FLOPs ratio of a training step with a fixed 2x2 pyramid."""
    row = case(STATIC, pairs).training()
    over = row["cost/train_step_flops_ratio"]
    name = f"static 2x2 pyramid, training step: time over FLOPs ({over:.3f})"
    yield Figure.of(name, row["time/train_step"], 1.15, over)


def mixed(pairs: int) -> Iterator[Figure]:
    """Time ratio over FLOPs ratio of the prefill with a different route per sample."""
    for attention in ("auto", "segments", "padded"):
        row = case(MIXED, pairs, attention=attention).answers(1)
        over = row["cost/prefill_flops_ratio"]
        name = f"mixed routes, prefill, {attention}: time over FLOPs ({over:.3f})"
        yield Figure.of(name, row["time/prefill"], 1.20, over)


def compiled(pairs: int) -> Iterator[Figure]:
    """Layers with torch.compile against layers without; routes differ."""
    plain, fast = (
        contenders(config(WIDE, MIXED), Load(compile_layers=value), "cpu")["ours"]
        for value in (False, True)
    )
    batch = make_batch(plain.model, 8, 64)
    for name, training in (("prefill", False), ("training step", True)):
        for runner in (plain, fast):
            set_training(runner, training)
        call = partial(train_step if training else answer, batch=batch)
        rest = {} if training else {"new_tokens": 1}
        ratio = compare(partial(call, fast, **rest), partial(call, plain, **rest), pairs)
        yield Figure.of(f"compiled layers against plain ones, mixed routes, {name}", ratio, None)


def chunks(pairs: int) -> Iterator[Figure]:
    """Loss of 512 tokens with Qwen2's vocabulary in bf16, in chunks against in one piece."""
    logits = torch.randn(512, 151_936, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(151_936, (512,))

    def loss(own: bool) -> None:
        if own:
            losses = cross_entropy(logits, targets)
        else:
            losses = F.cross_entropy(logits.float(), targets, reduction="none")
        torch.autograd.grad(losses.mean(), logits)

    memory = peak_bytes(partial(loss, True), [logits]) / peak_bytes(partial(loss, False), [logits])
    name = "loss of a long vocabulary, in chunks against in one piece"
    yield Figure(f"{name}: memory", memory, memory, memory, None)
    yield Figure.of(
        f"{name}: time", compare(partial(loss, True), partial(loss, False), pairs), None
    )


def released(pairs: int) -> Iterator[Figure]:
    """Training step against the released DPN's, with the same weights and routes, batch 16."""
    kernels = [(1, 2)] * 3
    load = Load(batch_size=16, route=[list(kernel) for kernel in kernels])
    model = config(WIDE, {"name": "dpe", "min_rows": 1})
    ours = contenders(model, load, "cpu")["ours"]
    theirs, batch = Released(ours.model, kernels), make_batch(ours.model, 16, 64)
    for runner in (ours, theirs):
        set_training(runner, True)
    losses = [float(runner.loss(batch).detach()) for runner in (ours, theirs)]
    assert math.isclose(*losses, rel_tol=1e-4), f"the two must compute the same: {losses}"
    step = partial(train_step, batch=batch)
    ratio = compare(partial(step, ours), partial(step, theirs), pairs)
    plain = config(WIDE, {"name": "none"})
    share = cost_of(model, 64, load.route).visual_macs / cost_of(plain, 64).visual_macs
    name = f"training step against the released way, {1 - share:.1%} of visual MACs cut: faster"
    yield Figure.of(name, ratio, 1.7, faster=True)


def generation(pairs: int) -> Iterator[Figure]:
    """Answers per second, batch 8 against batch 1, with 64 visual and 64 text rows."""
    tower = TOWER | {"image_size": 64}
    model = contenders(config(TINY, STATIC, tower), Load(), "cpu")["ours"].model.eval()
    batch = make_batch(model, 8, 64)
    del batch["labels"]
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    length = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}

    def ask(size: int) -> None:
        for first in range(0, 8, size):
            some = {name: tensor[first : first + size] for name, tensor in batch.items()}
            model.generate(**some, **length)

    ratio = compare(partial(ask, 8), partial(ask, 1), pairs)
    name = "8 answers of 64 tokens at once against one at a time: times the samples per second"
    yield Figure.of(name, ratio, 2.5, faster=True)


def decode(pairs: int) -> Iterator[Figure]:
    """Time per new token with a compressed cache."""
    row = case(STATIC, pairs).answers(33)
    name = f"static 2x2 pyramid, ms per new token (cache {row['cost/kv_bytes_ratio']:.3f})"
    yield Figure.of(name, row["time/decode"], 1.0)


def router_flops(pairs: int) -> Iterator[Figure]:
    """Share of gates and pooling in the FLOPs of a 7B's prefill; computed, not timed.

    Products of the gates are counted during a pass on fake tensors; pooling reads every visual row
    once and multiplies the rows that remain, with one operation per number each.
    """
    model = config(LARGE, {"name": "dpe"}, {"name": "clip"})
    meter = ResourceMeter()
    built, trace = prefill(model, 64, [[2, 2], [1, 1], [1, 1]], meter)
    (cost,) = costs(built, trace, [64])
    numbers = sum(d.kept[0] + sum(h * w for h, w in d.grids[0]) for d in trace.decisions)
    spent = meter.flops - cost.prefill_flops + numbers * LARGE["hidden_size"]
    share = spent / cost.prefill_flops
    yield Figure("router and pooling, share of a 7B's prefill FLOPs", share, share, share, 0.01)


def gpu_prefill(pairs: int) -> Iterator[Figure]:
    """Speed-up of a 7B's prefill over the ideal from its FLOPs, and the cost of the gates alone."""
    load = Load(pairs=pairs, dtype="bfloat16", device="cuda")
    model = config(LARGE, {"name": "dpe"}, {"name": "clip"})
    for route, name in (([[2, 2], [1, 1], [1, 1]], "2x2 after layer 7"), ("most", "gates alone")):
        chosen = replace(load, route=route)
        runners = contenders(model, chosen, "cuda")
        batch = make_batch(runners["none"].model, 8, 64)
        batch = {key: tensor.cuda() for key, tensor in batch.items()}
        row = Case(runners, batch, chosen).answers(1)
        time, name = row["time/prefill"], f"7B in bf16, batch 8, prefill, {name}"
        if route == "most":
            yield Figure.of(name, time, 1.03)
        else:
            over = row["cost/prefill_flops_ratio"]
            yield Figure.of(f"{name}: speed-up over ideal", time, 0.9, over, faster=True)
        del runners, batch


ROWS: dict[str, Callable[[int], Iterator[Figure]]] = {
    row.__name__: row
    for row in (
        *(none_forward, none_step, static_prefill, static_step, mixed, compiled, chunks),
        *(released, generation, decode, router_flops, gpu_prefill),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="default: all")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    torch.manual_seed(0)
    for name in options.rows or ROWS:
        if name.startswith("gpu") and not torch.cuda.is_available():
            print(f"{name} needs a GPU")
            continue
        for figure in ROWS[name](options.pairs):
            ends = f"[{figure.low:.3g}, {figure.high:.3g}]"
            words = f"{figure.ratio:.3g} {ends}, target {figure.target}: {figure.figure}"
            print({True: "met   ", False: "missed", None: "      "}[figure.met], words, flush=True)
            if options.pairs >= 20:
                append(name, figure)


if __name__ == "__main__":
    main()
