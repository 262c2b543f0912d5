"""Stock models that run with given rows in place of their visual tokens."""

from contextlib import contextmanager
from functools import cache

import torch

from tests.vlm_batches import fresh, is_text, shown
from tests.vlms import Picture, build, language

from . import naive_projectors as naive

PROMPTS = [
    [1, 5, Picture(100, 60), 7, 8, 9],
    [1, Picture(56, 56), 6, 7],
    [1, 5, 6],
]


@cache
def sharp(name):
    """Return a model whose tower attends to few tokens, so that choices are clear."""
    vlm = build(name)
    tower = next(
        getattr(vlm.model, part)
        for part in ("vision_tower", "vision_model", "visual")
        if hasattr(vlm.model, part)
    )
    with torch.no_grad():
        for key, weight in tower.named_parameters():
            if key.endswith(("q_proj.weight", "k_proj.weight", "qkv.weight")):
                weight *= 30
    return vlm


@contextmanager
def in_place_of(vlm, rows, inputs):
    """Let a stock model run with rows (sample, columns, vector) in place of its visual tokens: each
    at its first column, the other columns hidden. DeepStack's features are averaged likewise.
    """
    visible = shown(inputs).clone()
    visual = shown(inputs) & ~is_text(inputs)
    visible &= ~visual
    place = visual.flatten().cumsum(0).view(visual.shape) - 1
    for sample, columns, _ in rows:
        visible[sample, min(columns)] = True

    def write(_, args, kw):
        embeds = kw["inputs_embeds"]
        if embeds.shape[1] != visible.shape[1]:
            return None
        copies = len(embeds) // len(visible)
        kw["inputs_embeds"] = embeds = embeds.clone()
        planes = kw.get("deepstack_visual_embeds")
        if planes is not None:
            planes = kw["deepstack_visual_embeds"] = [plane.clone() for plane in planes]
            before = [plane.clone() for plane in planes]
            count = len(planes[0]) // copies
        for sample, columns, vector in rows:
            for copy in range(copies):
                embeds[sample * copies + copy, min(columns)] = vector
                if planes is not None and copies == 1:
                    cells = [int(place[sample, c]) for c in columns]
                    assert max(cells) < count
                    for plane, old in zip(planes, before, strict=True):
                        plane[int(place[sample, min(columns)])] = old[cells].mean(0)
        return args, kw

    def hide(layer, args, kw):
        hidden = args[0] if args else kw["hidden_states"]
        samples, new, _ = hidden.shape
        past = kw.get("past_key_values")
        total = new + (0 if past is None else past.get_seq_length(layer.self_attn.layer_idx))
        sees = torch.ones(samples, total, dtype=torch.bool)
        sees[:, : visible.shape[1]] = visible.repeat_interleave(samples // len(visible), 0)
        causal = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        own = torch.eye(new, total, dtype=torch.bool).roll(total - new, 1)
        kw["attention_mask"] = (causal & sees[:, None, None]) | own
        return args, kw

    text = language(vlm)
    hooks = [text.register_forward_pre_hook(write, with_kwargs=True)]
    hooks += [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in text.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def expected_rows(name, vlm, inputs, spans, method, settings):
    """Return (sample, columns, vector) of every row that a method leaves, by the naive rules."""
    stock = {}

    def note(_, args, kw):
        stock["x"] = kw["inputs_embeds"][shown(inputs) & ~is_text(inputs)]

    hook = language(vlm).register_forward_pre_hook(note, with_kwargs=True)
    vlm(**fresh(inputs))
    hook.remove()
    values, patches = None, 1
    if method in ("visionzip", "prumerge"):
        one = method == "prumerge"
        parts = naive.patch_values(name, vlm, inputs, after=int(one), one_softmax=one)
        marked = [
            torch.cat([part, torch.tensor([[float(i), 1.0]]).expand(len(part), 2)], 1)
            for i, part in enumerate(parts)
        ]
        values = naive.cells_of(name, vlm, inputs, marked)
        patches = {"internvl": 4, "smolvlm": 16}.get(name, 4 if name.startswith("qwen") else 1)
    rows = []
    for image in naive.images_of(name, stock["x"], spans, values, patches=patches):
        found = getattr(naive, method)(image, **settings)
        for cells, vector in found:
            places = [image.columns[i] for i in cells]
            rows.append((places[0][0], [column for _, column in places], vector))
    return rows
