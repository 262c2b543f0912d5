"""Compress a tiny model of every family and compare with the stock model; needs no pytest.

Run by `test_oldest_transformers.py` in an environment with the oldest supported transformers.
"""

import torch
import transformers

import dpn
from tests import vlms
from tests.core.hidden_columns import hidden
from tests.vlm_batches import fresh, is_text, shown

PROMPTS = [
    [1, 5, 6, vlms.Picture(100, 60), 7, 8],
    [1, 9, 11],
    [1, 4, vlms.Picture(50, 150), 5, vlms.Picture(56, 56), 7, 9],
]
VIDEO = [1, 4, vlms.Clip(6, 56, 56), 8, 9]
GREEDY = {
    "min_new_tokens": 4,
    "max_new_tokens": 4,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def largest(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def difference(name, video):
    """Return the largest difference of logits, in forward and `generate`."""
    vlm, worst, clips = vlms.model(name), 0.0, [VIDEO] if video else []
    right = vlms.batch(vlm, PROMPTS + clips, "right")
    left = vlms.batch(vlm, PROMPTS + clips)
    # With beams, this release mixes up the images of a sample that has several.
    one_each = vlms.batch(vlm, PROMPTS[:2] + clips)
    for router, settings in (("none", {}), ("vtw", {"k": 1})):
        small = dpn.compress(vlm, router, **settings)
        for inputs, beams in ((right, 0), (left, 0), (left, 1), (one_each, 2)):
            visible = shown(inputs) if router == "none" else is_text(inputs)
            with hidden(vlm, 1, visible):
                worst = max(worst, _difference(small, vlm, inputs, visible, beams))
    return worst


def _difference(small, vlm, inputs, visible, beams):
    if not beams:
        return largest(*([m(**fresh(inputs)).logits[visible]] for m in (small, vlm)))
    ours, theirs = (m.generate(**fresh(inputs), **GREEDY, num_beams=beams) for m in (small, vlm))
    assert torch.equal(ours.sequences, theirs.sequences), beams
    return largest(ours.logits, theirs.logits)


@torch.no_grad()
def main():
    print("transformers", transformers.__version__)
    for name in vlms.NAMES:
        for video in (False, True) if name in vlms.VIDEO_NAMES else (False,):
            found = difference(name, video)
            print(f"{name}{' with video' if video else ''}: {found:.1e}", flush=True)
            assert found < 2e-6, name


if __name__ == "__main__":
    main()
