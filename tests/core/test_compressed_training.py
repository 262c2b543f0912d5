"""Training of compressed Hugging Face VLMs, and half precision."""

import copy
import warnings

import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

import dpn
from tests.core._vlm_routers import ROUTERS, answered, batch, build, language, sample, shared

CHECKED = ("llava_next", "qwen3_vl", "smolvlm")
ANSWER = torch.tensor([[17, 23, 42, 8]])


def examples(name, count=2):
    """Return a batch of prompts with answers and labels, padded on the left."""
    given = batch([sample(name, seed, after=4 + seed) for seed in range(count)])
    return answered(given, torch.cat([ANSWER + b for b in range(count)]))


def gradients(model, inputs):
    model.zero_grad()
    out = model(**inputs)
    out.loss.backward()
    return out.loss.item(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def assert_equal_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("name", CHECKED)
def test_loss_and_gradients_equal_those_of_the_stock_model(name):
    model, inputs = build(name).train(), examples(name)
    loss, expected = gradients(model, inputs)
    fast = dpn.compress(model, "none")
    found_loss, found = gradients(fast, inputs)
    assert found_loss == pytest.approx(loss, abs=1e-6)
    assert len(found) > 40
    assert_equal_gradients(found, expected, 1e-6)
    # A router changes them, and every weight of the text model still gets one.
    _, other = gradients(dpn.compress(model, "fastv", k=1), inputs)
    assert other.keys() == expected.keys()
    assert any(not torch.allclose(other[n], g, atol=1e-4) for n, g in expected.items())


@pytest.mark.parametrize("router", ["none", "static", "sparsevlm", "aim", "yopo"])
@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("llava_next", marks=pytest.mark.slow)])
def test_checkpointed_layers_have_the_same_gradients(name, router):
    model, inputs = build(name).train(), examples(name)
    fast = dpn.compress(model, router, **ROUTERS[router])
    loss, expected = gradients(fast, inputs)
    fast.gradient_checkpointing_enable({"use_reentrant": False})
    layer, runs = language(fast).layers[1], []
    layer.self_attn.o_proj.register_forward_hook(lambda *args: runs.append(1))
    again, found = gradients(fast, inputs)
    assert len(runs) == 2  # forward, and again in the backward pass
    assert again == pytest.approx(loss, abs=1e-6)
    assert_equal_gradients(found, expected, 1e-6)
    assert fast(**inputs).past_key_values is None


@torch.no_grad()
@pytest.mark.parametrize("router", ["fastv", "pyramid_drop", "sparsevlm", "aim", "chain"])
@pytest.mark.parametrize("name", ["llava_next", "smolvlm"])
def test_answers_do_not_change_which_rows_are_kept(name, router):
    fast = dpn.compress(build(name).train(), router, **ROUTERS[router])
    kept, logits = [], []
    for shift in range(3):
        inputs = examples(name, 1)
        answer = slice(-ANSWER.shape[1], None)
        inputs["input_ids"][:, answer] += shift
        inputs["labels"][:, answer] += shift
        out = fast(**inputs)
        kept.append([cells for image in fast.dpn.trace.survivors for cells in image])
        logits.append(out.logits[:, : -ANSWER.shape[1]])
    for other, its in zip(kept[1:], logits[1:], strict=True):
        assert all((a == b).all() for a, b in zip(kept[0], other, strict=True))
        torch.testing.assert_close(its, logits[0])


def test_labels_of_the_whole_prompt_are_warned_of():
    """Then there is no instruction that a router could read."""
    model, inputs = shared("llava"), sample("llava").inputs
    everything = {**inputs, "labels": inputs["input_ids"].clone()}
    with pytest.warns(UserWarning, match="labels supervise text before an image"):
        dpn.compress(model, "fastv")(**everything)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dpn.compress(model, "vtw")(**everything)  # does not read the prompt
        dpn.compress(model, "fastv")(**answered(inputs, ANSWER))


class Examples(torch.utils.data.Dataset):
    def __init__(self, name):
        self.rows = [
            {
                key: value if key.startswith(("pixel", "image")) else value[0]
                for key, value in answered(sample(name, seed).inputs, ANSWER + seed).items()
            }
            for seed in range(4)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def collate(rows):
    joined = {"pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask"}
    return {
        key: (torch.cat if key in joined else torch.stack)([row[key] for row in rows])
        for key in rows[0]
    }


@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("smolvlm", marks=pytest.mark.slow)])
def test_the_trainer_of_hugging_face_trains_both(name, tmp_path):
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    fast = dpn.compress(model, "fastv", k=1)
    options = TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=True,
        save_strategy="no",
    )
    trainer = Trainer(fast, options, train_dataset=Examples(name), data_collator=collate)
    assert trainer.train().global_step == 2
    after = model.state_dict()
    assert all(
        after[key] is not None and torch.equal(after[key], v)
        for key, v in fast.state_dict().items()
    )
    moved = [key for key, value in before.items() if not torch.equal(after[key], value)]
    assert any("q_proj" in key for key in moved)
    trainer.save_model(tmp_path / "end")
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "end")
    assert all(torch.equal(after[key], value) for key, value in reloaded.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "routers"),
    [
        ("qwen3_vl", ("fastv", "aim", "yopo")),
        *[pytest.param(name, tuple(ROUTERS), marks=pytest.mark.slow) for name in CHECKED],
    ],
)
def test_half_precision_equals_the_stock_model(name, routers, dtype):
    model, given = build(name).to(dtype), sample(name)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.inputs.items()}
    stock = model(**inputs).logits
    assert torch.equal(dpn.compress(model, "none")(**inputs).logits, stock)
    for router in routers:
        fast = dpn.compress(model, router, **ROUTERS[router])
        out = fast(**inputs).logits
        assert out.dtype == dtype
        assert out.isfinite().all()
        tokens = fast.generate(**inputs, max_new_tokens=2, do_sample=False)
        first = tokens[0, inputs["input_ids"].shape[1]]
        assert out[0, -1, first] == out[0, -1].max()


@torch.no_grad()
@pytest.mark.parametrize("router", ["none", "fastv", "sparsevlm", "aim", "yopo"])
def test_autocast_is_close_to_full_precision(router):
    model, given = build("llava_next"), sample("llava_next")
    fast = dpn.compress(model, router, **ROUTERS[router])
    with torch.autocast("cpu", torch.bfloat16):
        low = fast(**given.inputs).logits[:, -1].float()
        stock = model(**given.inputs).logits[:, -1].float()
    if router == "none":
        torch.testing.assert_close(low, stock, atol=2e-2, rtol=0)
    full = fast(**given.inputs).logits[:, -1]
    scale = full.std()
    assert float((low - full).abs().max() / scale) < 0.2


@torch.no_grad()
def test_scores_are_read_in_fp32():
    """Probabilities of a model in half precision equal those of its weights in full precision."""
    model, given = build("llava").to(torch.bfloat16), sample("llava")
    seen = []

    def spy(fast):
        choose = fast.dpn.router.scores
        fast.dpn.router.scores = lambda *args: seen.append(choose(*args)[0]) or [seen[-1]]
        return fast

    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.inputs.items()}
    spy(dpn.compress(model, "fastv", k=1))(**inputs)
    wide = copy.deepcopy(model).float()
    spy(dpn.compress(wide, "fastv", k=1))(**given.inputs)
    low, full = seen
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, atol=2e-2, rtol=5e-2)
    assert not torch.equal(low, low.bfloat16().float())
