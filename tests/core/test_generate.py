"""Hugging Face's generate on ragged batches: cached equals recomputed, and a batch equals single
samples, with any padding.
"""

import pytest
import torch

from dpn import DPNForConditionalGeneration

from .conftest import collate, make_model, make_samples, without

ROUTERS = [
    {"name": "none"},
    {"name": "random", "layers": [0, 2], "min_rows": 1},
    {"name": "dpe", "layers": [0, 2], "min_rows": 1},
    {"name": "dpe", "layers": [0, 2], "min_rows": 1, "positions": "keep", "token": "last"},
    {"name": "fastv", "k": 1},
]
NEW = 4


@pytest.fixture(params=ROUTERS, ids=lambda r: "-".join(str(v) for v in list(r.values())[::3]))
def model(request):
    model = make_model(request.param, seed=3)
    model.generation_config.eos_token_id = None
    return model


def recomputed(model, sample):
    """Return the greedy answer of one sample, recomputing everything for every token."""
    ids, _, images = sample
    end = torch.tensor([len(ids)])
    new = []
    for _ in range(NEW):
        longer = torch.cat([ids, torch.tensor(new, dtype=torch.long)])
        batch = without(collate([(longer, longer, images)]), "labels")
        logits = model(**batch, instruction_end=end).logits[0, -1]
        logits[model.config.image_token_id] = -torch.inf
        new.append(int(logits.argmax()))
    return new


@torch.no_grad()
def test_a_batch_with_cache_equals_single_samples_without(model):
    samples = make_samples()
    expected = [recomputed(model, sample) for sample in samples]
    assert len({tuple(new) for new in expected}) > 1
    for side in ("left", "right"):
        batch = without(collate(samples, side), "labels")
        out = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
        assert out[:, batch["input_ids"].shape[1] :].tolist() == expected


def test_beams_of_a_batch_equal_beams_of_one(model):
    samples = make_samples()
    batch = without(collate(samples, "left"), "labels")
    width = batch["input_ids"].shape[1]
    out = model.generate(**batch, max_new_tokens=NEW, num_beams=3, num_return_sequences=2)
    for b, sample in enumerate(samples):
        one = without(collate([sample]), "labels")
        single = model.generate(**one, max_new_tokens=NEW, num_beams=3, num_return_sequences=2)
        assert out[2 * b : 2 * b + 2, width:].tolist() == single[:, len(sample[0]) :].tolist()


def test_sampling_repeats_with_a_seed(model):
    batch = without(collate(make_samples(), "left"), "labels")

    def answer(seed):
        torch.manual_seed(seed)
        return model.generate(
            **batch, max_new_tokens=NEW, do_sample=True, num_return_sequences=3, top_k=0
        ).tolist()

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_generating_without_cache_gives_the_same_answers(model):
    batch = without(collate(make_samples(), "left"), "labels")
    options = {"max_new_tokens": NEW, "do_sample": False}
    cached = model.generate(**batch, **options)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))


@torch.no_grad()
def test_appended_text_equals_recomputed(model):
    """Follow-ups of different lengths are appended to the filled cache in one call."""
    samples = make_samples()
    g = torch.Generator().manual_seed(5)
    more = [torch.randint(3, 40, (n,), generator=g) for n in (1, 4, 2, 3, 4)]
    extra = torch.zeros(5, 4, dtype=torch.long)
    extra_mask = torch.zeros_like(extra)
    for b, ids in enumerate(more):
        extra[b, : len(ids)] = ids
        extra_mask[b, : len(ids)] = 1
    expected = []
    for (ids, _, images), new in zip(samples, more, strict=True):
        whole = torch.cat([ids, new])
        one = without(collate([(whole, whole, images)]), "labels")
        logits = model(**one, instruction_end=torch.tensor([len(ids)])).logits[0]
        expected.append(logits[len(ids) :])
    for side in ("left", "right"):
        batch = without(collate(samples, side), "labels")
        first = model(**batch, use_cache=True)
        mask = torch.cat([batch["attention_mask"], extra_mask], 1)
        out = model(input_ids=extra, attention_mask=mask, past_key_values=first.past_key_values)
        assert out.trace is first.trace
        for logits, wanted in zip(out.logits, expected, strict=True):
            torch.testing.assert_close(logits[: len(wanted)], wanted, atol=1e-5, rtol=1e-4)


def test_the_cache_holds_the_rows_of_each_layer():
    model = make_model({"name": "static", "layers": [0, 2]})
    batch = without(collate(make_samples([0, 3])), "labels")
    cache = model(**batch, use_cache=True).past_key_values
    text = [9, 18]
    rows = [[16 + t for t in text]] + [[4 + t for t in text]] * 2 + [[1 + t for t in text]]
    assert [stage.lengths.tolist() for stage in cache.stage_of] == rows
    assert cache.get_seq_length() == batch["input_ids"].shape[1]


def test_image_in_a_follow_up_is_refused():
    model = make_model()
    batch = without(collate(make_samples([0])), "labels")
    cache = model(**batch, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be appended"):
        model(input_ids=batch["input_ids"][:, 1:4], past_key_values=cache)


def test_foreign_cache_is_refused():
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="RaggedCache"):
        make_model()(input_ids=torch.tensor([[3, 4]]), past_key_values=DynamicCache())


@torch.no_grad()
def test_save_and_reload_is_bit_equal(model, tmp_path):
    batch = without(collate(make_samples()), "labels")
    if hasattr(model.router, "price"):
        model.router.price.fill_(0.25)
    model.save_pretrained(tmp_path)
    again = DPNForConditionalGeneration.from_pretrained(tmp_path).eval()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(model(**batch).logits, again(**batch).logits)
    before, after = model.config.to_dict(), again.config.to_dict()
    for name in ("text_config", "vision_config", "projector_config", "router_config"):
        assert before[name] == after[name]


def test_a_mask_with_holes_is_refused():
    batch = without(collate(make_samples([0])), "labels")
    batch["attention_mask"][0, 4] = 0
    with pytest.raises(ValueError, match="one run of ones"):
        make_model()(**batch)


@pytest.mark.parametrize("change", ["fewer", "more", "wrong sample"])
def test_images_must_match_marks(change):
    batch = without(collate(make_samples()), "labels")
    if change == "fewer":
        for name in ("pixel_values", "image_sizes", "image_sample"):
            batch[name] = batch[name][1:]
    elif change == "more":
        batch["input_ids"][0, 2] = 5
    else:
        batch["image_sample"] = torch.tensor([0, 0, 1, 3, 4, 4])
    with pytest.raises(ValueError, match="one image per <image>"):
        make_model()(**batch)
