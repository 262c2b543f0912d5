"""A training step like that of the released DPN, written naively from its description.

Each sample of a batch is routed in a loop: gate, pooling, scaling by the probability, and cutting
of its labels. Then it is padded with zeros to its previous length, so all samples keep the same
length and every layer computes all rows, as do the head and the loss. There is no attention mask
for the padding, which favours the original: rows at the end are never seen by those before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.measure.contenders import Batch, HuggingFace
from dpn.model import DPNForConditionalGeneration

IGNORE = -100


class Released:
    """The released method with the weights and gates of a model with `router=dpe`.

    Args:
        model: Model whose weights are used.
        kernels: Kernel of each gate, for all samples.
    """

    def __init__(self, model: DPNForConditionalGeneration, kernels: list[tuple[int, int]]):
        self.model, self.stock = model, HuggingFace(model)
        self.parts = {"whole": model, **self.stock.parts}
        self.kernel_after = dict(zip(model.router.plan.layers, kernels, strict=True))

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss per supervised token; images are in column 1, samples not padded."""
        hidden = self.stock.rows(batch)  # [B, length, D]
        length = hidden.shape[1]
        text = batch["input_ids"].shape[1] - 1
        labels = [self._spread(row, length - text) for row in batch["labels"]]
        router = [
            int((ids == self.model.config.router_token_id).nonzero()) for ids in batch["input_ids"]
        ]
        grids = [self.model.projector.grid_after(self.model.vision.grid)] * len(hidden)
        positions = torch.arange(length)[None]
        rotary = self.model.language.rotary_emb(hidden, position_ids=positions)
        for index, layer in enumerate(self.stock.text.model.layers):
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
            if index in self.kernel_after:
                samples = []
                for b, rows in enumerate(hidden):
                    rows, labels[b], grids[b] = self._route(
                        index, rows, labels[b], grids[b], router[b]
                    )
                    samples.append(rows)
                hidden = torch.stack(samples)
        logits = self.model.lm_head(self.model.language.norm(hidden)).float()
        targets = torch.stack(labels)[:, 1:].flatten()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORE)

    def _spread(self, labels: Tensor, rows: int) -> Tensor:
        """Expand the labels of a sample to one label per image row."""
        return torch.cat([labels[:1], labels.new_full((rows,), IGNORE), labels[2:]])

    def _route(
        self, layer: int, rows: Tensor, labels: Tensor, grid: tuple[int, int], column: int
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Apply one gate to one sample and pad it to its previous length."""
        height, width = grid
        count, kernel = height * width, self.kernel_after[layer]
        read = rows[column + count - 1]  # the <ROUTER> token's row
        probs = self.model.router.gates[str(layer)](read[None]) / self.model.router.temperature
        expert = self.model.router.plan.kernels[0].index(kernel)
        visual = rows[1 : 1 + count].T.unflatten(1, grid)[None]  # [1, D, height, width]
        pooled = F.max_pool2d(visual, kernel, kernel, ceil_mode=True)[0]
        grid = (pooled.shape[1], pooled.shape[2])
        pooled = pooled.flatten(1).T * probs.softmax(-1)[0, expert]
        kept = torch.cat([rows[:1], pooled, rows[1 + count :]])
        cut = torch.cat([labels[:1], labels[1 : 1 + len(pooled)], labels[1 + count :]])
        missing = len(rows) - len(kept)
        kept = torch.cat([kept, kept.new_zeros(missing, kept.shape[1])])
        return kept, torch.cat([cut, cut.new_full((missing,), IGNORE)]), grid
