"""The LightningModule: losses, optimizer groups, the schedule, and what is logged."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from dpn.cost import visual_macs_ratio
from dpn.data.batch import Batch
from dpn.losses import RoutingLoss
from dpn.model import DPNForConditionalGeneration
from dpn.tokens import Trace
from dpn.training._lightning import logs_this_step
from dpn.training.schedule import Schedule, learning_rate_factor
from dpn.training.strategies import ZeRO, shard

log = logging.getLogger(__name__)


class DPNModule(LightningModule):
    """Training and validation steps of a model.

    The language loss is the sum over supervised tokens divided by their number over all processes
    and the whole accumulation window, so N processes equal one. With `reduction=reference` each
    process and micro-batch takes its own mean.

    Args:
        model: Model to train.
        routing_loss: Loss that is added to the language loss.
        optimizer: Function that makes the optimizer from parameter groups.
        schedule: Course of the learning rates.
        freeze: Parts of the model that are not trained, see `trained_with`.
        dense: Share of all steps before the router acts.
        seed: Seed of the run; with the step it keys the sampling of routes.
        settings: The run's config as plain values, for the loggers.
    """

    def __init__(
        self,
        model: DPNForConditionalGeneration,
        routing_loss: RoutingLoss,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        schedule: Schedule,
        freeze: Sequence[str] = (),
        dense: float = 0.0,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.routing_loss = routing_loss
        self.make_optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.dense, self.dense_steps = dense, 0
        self.val_loss, self.val_share = MeanMetric(), MeanMetric()
        for name, parameter in model.named_parameters():
            if trained_with(name, model.vision.aligned) in freeze and "lora_" not in name:
                parameter.requires_grad_(False)
        self.save_hyperparameters(settings or {})  # plain values only: never the modules

    def configure_model(self) -> None:
        """Shard the model if the strategy has a device mesh; else convert it to fp32, unless
        DeepSpeed keeps fp32 copies of the weights.
        """
        half = torch.bfloat16 if str(self.trainer.precision).startswith("bf16") else None
        if self.device_mesh is not None:
            shard(self.model, self.routing_loss, self.device_mesh["data_parallel"], half)
        elif half is None or not isinstance(self.trainer.strategy, ZeRO):
            self.model.float()

    def on_train_start(self) -> None:
        """Turn `dense`, a share of all steps, into a number of steps."""
        self.dense_steps = round(self.dense * int(self.trainer.estimated_stepping_batches))
        if self.global_step < self.dense_steps and self.model.router.reach() != (1.0, 1.0):
            log.info("the router acts from step %d on (stage.dense)", self.dense_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a micro-batch; summed over processes and window, the global mean."""
        items, copies = self._count(batch)
        inputs = batch.model_inputs() | {"step": self.global_step, "seed": self.seed}
        acts = self.global_step >= self.dense_steps
        out = self.model(**inputs, num_items_in_batch=items, compress=acts)
        probe = self.routing_loss.probe(self.seed, self.global_step) if acts else None
        if probe is not None:
            # After the pass with gradients: autocast would keep weights that it cast without.
            with torch.no_grad():
                out.trace.probe = self.model(**inputs, router=probe).trace
        # Lightning divides by the window and DDP by the processes, which `items` has done already.
        language = out.loss * copies
        routing = self.routing_loss(out.trace)
        if logs_this_step(self.trainer):
            self._log_step(batch, language, routing, out.trace)
        if self.trainer.strategy.handles_gradient_accumulation:  # DeepSpeed, after Lightning has
            return (language + routing) * self.trainer.accumulate_grad_batches
        return language + routing

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Trace]:
        """Update the mean language loss per supervised token and the mean share of visual MACs;
        returns the trace for callbacks.
        """
        out = self.model(**batch.model_inputs(), seed=self.seed, return_logits=False)
        if batch.num_supervised:
            self.val_loss.update(out.loss, weight=batch.num_supervised)
            for share in visual_shares(out.trace, self.model.config.text_config):
                self.val_share.update(share)
        # Metric objects: Lightning's own mean over processes rounds the number of tokens.
        self.log("val/loss", self.val_loss)
        self.log("val/visual_macs_ratio", self.val_share)
        return {"trace": out.trace}

    def configure_optimizers(self) -> Any:
        """The optimizer with its parameter groups, and the learning rate schedule."""
        optimizer = self.make_optimizer(parameter_groups(self, self.schedule))
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, partial(learning_rate_factor, self.schedule, steps=steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _count(self, batch: Batch) -> tuple[Tensor | None, int]:
        """Supervised tokens of the global window, and by how much Lightning divides again."""
        if self.routing_loss.reduction == "reference":
            return None, 1
        window = torch.tensor(float(batch.window_tokens), device=self.device)
        total = self.trainer.strategy.reduce(window, reduce_op="sum")
        assert isinstance(total, Tensor)
        copies = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return total.clamp(min=1), copies  # a window without supervised tokens has loss 0, not NaN

    def _log_step(self, batch: Batch, language: Tensor, routing: Tensor, trace: Trace) -> None:
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer | LightningOptimizer)
        values = {"loss/language": language, "lr": optimizer.param_groups[0]["lr"]}
        if routing.requires_grad:
            values[f"loss/{type(self.routing_loss).__module__.rpartition('.')[2]}"] = routing
        shares = visual_shares(trace, self.model.config.text_config)
        if shares:
            values["cost/visual_macs_ratio"] = sum(shares) / len(shares)
            values |= {f"router/kept/{n}": share for n, share in enumerate(kept_shares(trace))}
        self.log_dict(values, batch_size=len(batch))


def visual_shares(trace: Trace, text_config: Any) -> list[float]:
    """Share of visual MACs of every sample with an image."""
    ratios = visual_macs_ratio(trace, text_config)
    return [ratio for ratio, rows in zip(ratios, trace.base_rows, strict=True) if rows]


def kept_shares(trace: Trace) -> list[float]:
    """Per layer, the visual rows that enter it as a share of the tower's uncompressed tokens."""
    return [sum(rows) / sum(trace.base_rows) for rows in trace.visual_rows]


def trained_with(name: str, aligned: Sequence[str] = ()) -> str:
    """The part that a parameter belongs to when it is trained or frozen: `vision`, `projector`, ...

    Args:
        name: Name of the parameter in the model.
        aligned: Modules of the vision tower that belong to the projector, see `VisionTower`.
    """
    part, _, rest = name.partition(".")
    return "projector" if part == "vision" and rest.partition(".")[0] in aligned else part


def parameter_groups(module: "DPNModule", schedule: Schedule) -> list[dict[str, Any]]:
    """Trained parameters as optimizer groups.

    Only matrices have weight decay; the router and the projector may have learning rates of their
    own. `hidden` marks matrices inside layers.
    """
    rates = {"router": schedule.gate_lr, "projector": schedule.projector_lr}
    aligned = module.model.vision.aligned
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            part = trained_with(name.removeprefix("model."), aligned)
            is_hidden = part != "router" and ".layers." in name and parameter.ndim == 2
            key = (part if part in rates else "", parameter.ndim >= 2, is_hidden)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "hidden": is_hidden}
        | ({} if is_matrix else {"weight_decay": 0.0})
        | ({} if rates.get(part) is None else {"lr": rates[part]})
        for (part, is_matrix, is_hidden), parameters in sorted(groups.items(), key=lambda g: g[0])
    ]
