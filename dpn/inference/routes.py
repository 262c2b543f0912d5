"""Record what each decoder layer kept of an image for a question, and why."""

from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from dpn.inference.answering import answer, inputs_of
from dpn.inference.survivors import Passage, watch
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.reports.overlays import count_rows, to_pixels
from dpn.reports.route import LayerChoice, Route, RouteStep
from dpn.tokens import Decision, RowDecision, Trace

#: Options of a `RowDecision`, in which every row decides for itself.
ROW_OPTIONS = ("pass by", "take part")


def trace_route(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    prompt: str,
    images: list[Image.Image],
    max_new_tokens: int,
) -> Route:
    """Answer one question about some images, and record its route."""
    inputs = inputs_of(processor, prompt, images)
    found = answer(model, processor, inputs, max_new_tokens)[0]
    passage = watch(model, {name: tensor.to(model.device) for name, tensor in inputs.items()})
    share = f"{found['visual_macs_ratio']:.2f} of the visual MACs"
    return Route(
        prompt,
        found["answer"],
        [f"{share}. {_reasons(model, passage.trace)}"],
        _pixels(processor, inputs),
        _steps(passage, found["base_rows"]),
    )


def _pixels(processor: DPNProcessor, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """`[H, W, 3]` each image as the model sees it."""
    recipe, sizes = processor.transform, inputs["image_sizes"].tolist()
    values = zip(inputs["pixel_values"], sizes, strict=True)
    return [to_pixels(one[:, :h, :w], recipe.mean, recipe.std) for one, (h, w) in values]


def _steps(passage: Passage, base_rows: int) -> list[RouteStep]:
    """The first layer, and each layer at which a decision was made or the rows changed."""
    trace, known = passage.trace, 0
    steps: list[RouteStep] = []
    for layer, owners in enumerate(passage.owners):
        new = trace.decisions[known : passage.decided[layer]]
        known = passage.decided[layer]
        choices = [_choice(decision) for decision in new if decision.samples]
        words = f"into layer {layer}"
        for decision in (d for d in trace.row_decisions if d.layer == layer):
            owners, choice = _taking_part(owners, decision)
            choices.append(choice)
            words = f"part in layer {layer}"
        before = steps[-1].owners if steps else None
        same = before is not None and all(map(np.array_equal, owners, before))
        if choices or not same:
            rows = sum(map(count_rows, owners))
            steps.append(RouteStep(f"{words}: {rows} of {base_rows} rows", owners, choices))
    return steps


def _choice(decision: Decision) -> LayerChoice:
    """The decision about the only sample."""
    if not decision.names:
        return LayerChoice(f"layer {decision.layer} keeps {decision.kept[0]} rows", {})
    probs = dict(zip(decision.names, decision.probs[0].tolist(), strict=True))
    return LayerChoice(f"layer {decision.layer}", probs, decision.names[int(decision.experts[0])])


def _taking_part(
    owners: list[np.ndarray], decision: RowDecision
) -> tuple[list[np.ndarray], LayerChoice]:
    """Owners without the rows that pass the layer by, and the mean probability of each option."""
    chosen = decision.chosen.bool().cpu().numpy()
    ends = np.cumsum([count_rows(owner) for owner in owners])[:-1]
    left = [
        np.where((owner >= 0) & part[owner], owner, -1)
        for owner, part in zip(owners, np.split(chosen, ends), strict=True)
    ]
    means = decision.logits.softmax(-1).mean(0).tolist()
    title = f"layer {decision.layer}, mean over rows"
    return left, LayerChoice(title, dict(zip(ROW_OPTIONS, means, strict=True)))


def _reasons(model: DPNForConditionalGeneration, trace: Trace) -> str:
    """A sentence about how this router decides."""
    name, router = model.config.router_config["name"], model.router
    if not (trace.decisions or trace.row_decisions):
        return f"router={name} keeps all rows that enter the decoder until its last layer."
    if not trace.row_decisions and not any(d.names for d in trace.decisions):
        return f"router={name} keeps rows by a fixed rule, without probabilities."
    if float(price := getattr(router, "price", 0.0)):
        return (
            f"router={name} decides by these probabilities, which contain a price on rows"
            f" ({float(price):.3g}) calibrated for router.keep={router.keep}."
        )
    return f"router={name} decides by these probabilities."
