"""Reference for dropping: a stock model some of whose layers no longer see some columns."""

from contextlib import contextmanager

import torch

from tests.vlm_batches import IMAGE, VIDEO, fresh
from tests.vlms import language


@contextmanager
def hidden(vlm, layer, visible):
    """From a layer on, let columns that are not visible be seen by themselves only.

    Args:
        vlm: A stock model.
        layer: Index of the layer.
        visible: Columns of the prompt that the others see, bool `[B, T]`.
    """

    def before(module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        new = states.shape[1]
        every = new + (cache.get_seq_length(module.self_attn.layer_idx) if cache is not None else 0)
        mask = torch.ones(len(states), every, dtype=torch.bool)
        mask[:, : visible.shape[1]] = visible.repeat_interleave(len(states) // len(visible), 0)
        causal = torch.ones(new, every, dtype=torch.bool).tril(every - new)
        itself = torch.eye(every, dtype=torch.bool)[every - new :]
        kwargs["attention_mask"] = (causal & mask[:, None, None]) | itself
        return args, kwargs

    layers = language(vlm).layers[layer:]
    hooks = [x.register_forward_pre_hook(before, with_kwargs=True) for x in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def image_columns(vlm, inputs):
    """Return the columns of each image, for each sample: every run of them is one, but a video of
    Qwen3-VL has a run for each frame.
    """
    images = []
    for ids in inputs["input_ids"]:
        runs = []
        for kind in (IMAGE, VIDEO):
            places = (ids == kind).nonzero()[:, 0]
            found = places.tensor_split((places.diff() > 1).nonzero()[:, 0] + 1)
            frames = kind == VIDEO and vlm.config.model_type == "qwen3_vl"
            runs += [places] if frames else found
        images.append([run for run in runs if len(run)])
    return images


def fastv_visible(vlm, inputs, layer, ratio):
    """Return the columns that FastV leaves before a layer, from the model's own attention."""
    implementation = vlm.config._attn_implementation
    vlm.set_attn_implementation("eager")
    try:
        out = vlm(**fresh(inputs), output_attentions=True)
    finally:
        vlm.set_attn_implementation(implementation)
    shown = inputs["attention_mask"].bool()
    visible = shown & (inputs["input_ids"] != IMAGE) & (inputs["input_ids"] != VIDEO)
    attention = out.attentions[layer - 1].mean(1)  # over heads
    for sample, images in enumerate(image_columns(vlm, inputs)):
        last = int(shown[sample].nonzero()[-1, 0])
        for columns in images:
            order = attention[sample, last, columns].argsort(descending=True, stable=True)
            visible[sample, columns[order[: round(len(columns) * (1 - ratio))]]] = True
    return visible
