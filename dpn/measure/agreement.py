"""Whether two models compute the same for one sample, up to rounding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """How far two models agree on a prompt and on the tokens that they generate after it.

    Logits are compared in all columns of the prompt that have a row, and in each step of generation
    as long as the tokens before it are equal.

    Attributes:
        name: What was compared, e.g. `router=none`.
        reference: What it was compared with, in words.
        difference: Largest absolute difference of logits; not finite if a logit is not.
        allowed: Largest difference that counts as rounding.
        tokens: Number of equal tokens before the first one that differs.
        generated: Number of generated tokens.
        effect: Largest difference that the method itself makes to the logits of the last column of
            the prompt; None without a method.
    """

    name: str
    reference: str
    difference: float
    allowed: float
    tokens: int
    generated: int
    effect: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= self.allowed  # false for NaN


@dataclass(frozen=True)
class Selection:
    """How far FastV's choice of visual rows agrees with the attention of the stock model.

    Attributes:
        same: Number of kept columns that the stock model's attention ranks among the first, too.
        kept: Number of kept columns.
        excess: Largest attention of a dropped column above the smallest of a kept one of the same
            image, as a share of the latter; negative or 0 if the choice is the same.
        allowed: Largest excess that counts as rounding.
    """

    same: int
    kept: int
    excess: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the choice is the same, up to rounding."""
        return self.excess <= self.allowed


@dataclass(frozen=True)
class Outputs:
    """What a model computes for a prompt, and for the tokens that it generates greedily.

    Attributes:
        prompt: Logits of the prompt, `[B, T, vocabulary]`.
        tokens: Generated tokens `[B, N]`.
        steps: Logits from which they were taken, `[B, N, vocabulary]`.
    """

    prompt: Tensor
    tokens: Tensor
    steps: Tensor


def outputs(model: Any, inputs: Mapping[str, Any], new_tokens: int) -> Outputs:
    """Run a model over a prompt, and let it generate.

    The settings of `generation_config` that would change greedy decoding are switched off.
    """
    out = model.generate(
        **_copied(inputs),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    prompt = model(**_copied(inputs)).logits
    return Outputs(prompt, out.sequences[:, -new_tokens:], torch.stack(out.logits, 1))


def _copied(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copy inputs, which some models change."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}


def agreement(
    ours: Outputs, theirs: Outputs, columns: np.ndarray, tolerance: float, name: str, reference: str
) -> Agreement:
    """Compare what two models computed for one sample.

    Args:
        ours: Of the compressed model.
        theirs: Of the reference.
        columns: Columns of the prompt to compare, bool `[1, T]`.
        tolerance: Allowed difference as a share of the reference's largest logit.
        name: See `Agreement`.
        reference: See `Agreement`.
    """
    marks = torch.from_numpy(columns).to(theirs.prompt.device)
    wanted = theirs.prompt[marks].float()
    equal = (ours.tokens == theirs.tokens)[0].cumprod(0)
    count, generated = int(equal.sum()), len(equal)
    compared = min(count + 1, generated)  # the step that chose the first other token, too
    steps = ours.steps[:, :compared].float() - theirs.steps[:, :compared].float()
    gaps = torch.stack([(ours.prompt[marks].float() - wanted).abs().max(), steps.abs().max()])
    allowed = tolerance * float(wanted.abs().max())
    return Agreement(name, reference, float(gaps.max()), allowed, count, generated)


def selection(
    attention: Tensor, kept: np.ndarray, visual: np.ndarray, tolerance: float
) -> Selection:
    """Compare a choice of visual columns with the attention that they get.

    Args:
        attention: Attention that each column of the sample gets, `[T]`.
        kept: Columns that were kept, bool `[T]`.
        visual: Visual columns, bool `[T]`. Each run of them is an image, whose columns compete.
        tolerance: See `Selection.allowed`.
    """
    places = np.flatnonzero(visual)
    same, worst = 0, -1.0
    for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
        scores, inside = attention[torch.from_numpy(run)].cpu().numpy(), kept[run]
        best = np.argsort(-scores, kind="stable")[: inside.sum()]
        same += int(inside[best].sum())
        if inside.any() and not inside.all():
            least = float(scores[inside].min())
            worst = max(worst, (float(scores[~inside].max()) - least) / max(least, 1e-30))
    return Selection(same, int(kept[places].sum()), worst, tolerance)
