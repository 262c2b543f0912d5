"""Measurements of one batch of `dpn.bench`, beside the costs that the formulas give.

Figures are flat; means are per sample. Their parts are `prefill`, until the first new token;
`decode`, a later token; `answer`, all tokens; and `train_step`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np
import torch

from dpn.cost import Cost, costs
from dpn.measure.contenders import (
    Batch,
    Contender,
    answer,
    set_training,
    train_step,
    uncompressed,
    weights,
)
from dpn.measure.dry_run import RouteSetting, cost_of, supervised_columns, training_step
from dpn.measure.load import Load
from dpn.measure.profiling import profile
from dpn.metrics.memory import GIB, peak_bytes
from dpn.metrics.speed import race, ratio
from dpn.model import DPNConfig, DPNForConditionalGeneration, meta_model

Figures = dict[str, Any]
"""Flat figures of a measurement, by their keys."""


class Case:
    """Contenders on one batch.

    Args:
        runners: Contenders `ours`, `none` and optionally `hf`, see `dpn.measure.contenders`.
        batch: Batch whose samples all have the same number of columns.
        load: Settings of the measurement.
    """

    def __init__(self, runners: Mapping[str, Any], batch: Batch, load: Load):
        self.runners, self.batch, self.load = runners, batch, load
        self.samples = len(batch["input_ids"])
        self.text_columns = batch["input_ids"].shape[1] - 1

    def answers(self, new_tokens: int) -> Figures:
        """Measure prefill and decoding.

        Returns:
            `cost/<part>_flops` and its ratio to no compression; `time/<part>` and `hf/<part>`,
            `Ratio`s to no compression and to Hugging Face; `over_flops/<part>`, the ratio of times
            divided by the ratio of FLOPs; `memory/answer_gib`, the peak (`memory/prefill_gib` for
            one new token), and its ratios. On a GPU also `ms/<part>`, the quartiles, and samples
            and new tokens per second.
        """
        ours, none = (self._costs(name, training=False) for name in ("ours", "none"))
        number_bytes = getattr(torch, self.load.dtype).itemsize
        row = answer_costs(ours, none, self.text_columns, new_tokens, number_bytes)
        whole = "answer" if new_tokens > 1 else "prefill"
        row |= self._timed(whole, lambda c: answer(c, self.batch, new_tokens), row)
        if took := row.get(f"ms/{whole}"):
            row[f"samples_per_s/{whole}"] = 1e3 * self.samples / took[1]
            row[f"tokens_per_s/{whole}"] = row[f"samples_per_s/{whole}"] * new_tokens
        return row

    def training(self) -> Figures:
        """Measure a forward and a backward pass; returns the same figures as `answers`."""
        ours, none = (self._costs(name, training=True) for name in ("ours", "none"))
        row = training_costs(ours, none, self.text_columns, self.load.checkpoint_layers)
        row |= self._timed("train_step", lambda c: train_step(c, self.batch), row)
        if took := row.get("ms/train_step"):
            row["samples_per_s/train_step"] = 1e3 * self.samples / took[1]
        return row

    def profiles(self) -> Figures:
        """`profile/prefill` and `profile/train_step`: for each contender, the time of each part
        divided by the whole time without compression, see `dpn.measure.profiling`.
        """
        row: Figures = {}
        calls: dict[str, Callable[[Contender], object]] = {
            "prefill": lambda contender: answer(contender, self.batch, 1)
        }
        if self.load.train:
            calls["train_step"] = lambda contender: train_step(contender, self.batch)
        for part, call in calls.items():
            self._set_training(part == "train_step")
            seconds = {name: profile(c, call) for name, c in self.runners.items()}
            every = sum(seconds["none"].values())
            row[f"profile/{part}"] = {
                name: {key: value / every for key, value in took.items()}
                for name, took in seconds.items()
            }
        return row

    def _set_training(self, training: bool) -> None:
        for contender in self.runners.values():
            set_training(contender, training)

    @torch.no_grad()
    def _costs(self, name: str, training: bool) -> list[Cost]:
        """Costs of the routes that are taken, by the formulas."""
        model: DPNForConditionalGeneration = self.runners[name].model
        inputs = {k: v for k, v in self.batch.items() if training or k != "labels"}
        trace = model.train(training)(**inputs, logits_to_keep=1).trace
        return costs(model, trace, [self.text_columns] * self.samples)

    def _timed(
        self, whole: str, call: Callable[[Contender], dict[str, float]], cost: Figures
    ) -> Figures:
        """Measured times and memory."""
        self._set_training(whole == "train_step")
        calls = {name: (lambda c=c: call(c)) for name, c in self.runners.items()}
        row: Figures = {}
        for part, took in race(calls, self.load.pairs).items():
            row[f"time/{part}"] = ratio(took["ours"], took["none"])
            share = cost[f"cost/{part}_flops_ratio"]
            row[f"over_flops/{part}"] = row[f"time/{part}"].ratio / share
            if "hf" in took:
                row[f"hf/{part}"] = ratio(took["ours"], took["hf"])
            if self.batch["input_ids"].is_cuda:
                quartiles = np.quantile(1e3 * took["ours"], [0.25, 0.5, 0.75])
                row[f"ms/{part}"] = quartiles.tolist()
        memory = {
            name: peak_bytes(calls[name], weights(contender))
            for name, contender in self.runners.items()
        }
        row[f"memory/{whole}_gib"] = memory["ours"] / GIB
        for other in memory.keys() - {"ours"}:
            row[f"memory/{whole}_to_{other}"] = memory["ours"] / memory[other]
        return row


def on_paper(config: DPNConfig, load: Load, batch_size: int, text_columns: int) -> list[Figures]:
    """Figures that need no measurement: the costs of a `Case`, those of each layer, and
    `memory/saved_gib`, what a forward pass saves for its backward pass.

    Returns:
        Figures for each number of new tokens: of the given route or, with `own`, of the most and of
        the fewest rows that the router can leave.
    """
    dtype, plain, text = getattr(torch, load.dtype), uncompressed(config), text_columns
    news = load.new_tokens if isinstance(load.new_tokens, list) else [load.new_tokens]
    routes = ["most", "fewest"] if load.route == "own" else [load.route]
    known = [(route, cost_of(config, text, route)) for route in routes]
    if one_end := known[0][1] == known[-1][1]:
        del known[1:]
    none, rows = cost_of(plain, text), []
    for route, ours in known:
        own: Figures = {"batch_size": batch_size, "text_columns": text}
        own["route"] = load.route if one_end else route
        own["layers/visual_macs"] = [layer.visual_macs for layer in ours.layers]
        own["layers/prefill_flops"] = [x.linear_flops + x.attention_flops for x in ours.layers]
        own["layers/decode_flops"] = [layer.decode_flops for layer in ours.layers]
        own["layers/kv_bytes"] = [dtype.itemsize * layer.kv_numbers for layer in ours.layers]
        for new in news:
            figures = answer_costs([ours], [none], text, new, dtype.itemsize)
            rows.append(asdict(load) | own | {"new_tokens": new} | figures)
        if load.train:
            first = rows[-len(news)]
            first |= training_costs([ours], [none], text, load.checkpoint_layers)
            first |= _saved(config, load, batch_size, text, route)
    return rows


def _saved(
    config: DPNConfig, load: Load, batch_size: int, text: int, route: RouteSetting
) -> Figures:
    steps = []
    for each, taken in ((config, route), (uncompressed(config), "most")):
        model = meta_model(each)
        model.checkpoint_layers = model.vision.checkpoint_layers = load.checkpoint_layers
        steps.append(training_step(model, batch_size, text, taken, getattr(torch, load.dtype)))
    return {
        "memory/saved_gib": steps[0].saved / GIB,
        "memory/saved_to_none": steps[0].saved / steps[1].saved,
        "layers/saved_bytes": list(steps[0].saved_by_layer),
    }


def answer_costs(
    ours: Sequence[Cost],
    none: Sequence[Cost],
    text_columns: int,
    new_tokens: int,
    number_bytes: int,
) -> Figures:
    """Costs of answering the same samples with and without compression."""
    row: Figures = {"cost/visual_macs_ratio": _ratio(ours, none, lambda cost: cost.visual_macs)}
    later = new_tokens - 1
    parts: dict[str, Callable[[Cost], float]] = {"prefill": lambda cost: cost.prefill_flops}
    if later:
        parts["answer"] = lambda cost: cost.answer_flops(new_tokens)
        parts["decode"] = lambda cost: (cost.answer_flops(new_tokens) - cost.prefill_flops) / later
    for part, flops in parts.items():
        row[f"cost/{part}_flops"] = fmean(map(flops, ours))
        row[f"cost/{part}_flops_ratio"] = _ratio(ours, none, flops)
    row["cost/kv_bytes"] = fmean(cost.kv_bytes(number_bytes) for cost in ours)
    row["cost/kv_bytes_ratio"] = _ratio(ours, none, lambda cost: cost.kv_bytes(number_bytes))
    layers = zip(*(cost.layers for cost in ours), strict=True)
    row["rows"] = [fmean(x.cached_rows for x in layer) - text_columns for layer in layers]
    return row


def training_costs(
    ours: Sequence[Cost], none: Sequence[Cost], text_columns: int, checkpoint_layers: bool
) -> Figures:
    """Costs of a training step with and without compression."""

    def flops(cost: Cost) -> float:
        return cost.training_flops(supervised_columns(text_columns), checkpoint_layers)

    return {
        "cost/train_step_flops": fmean(map(flops, ours)),
        "cost/train_step_flops_ratio": _ratio(ours, none, flops),
    }


def _ratio(ours: Sequence[Cost], none: Sequence[Cost], of: Callable[[Cost], float]) -> float:
    return sum(map(of, ours)) / sum(map(of, none))
