"""Hugging Face's Trainer, peft, TRL and torch.compile run on our class, each for real."""

import copy
import functools

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from dpn.data.batch import IGNORE
from tests.talkers import make_talker, picture

from .conftest import IMAGE, collate, make_model, make_samples, without

pytestmark = pytest.mark.slow
ROUTERS = [{"name": "none"}, {"name": "fastv", "k": 1}, {"name": "dpe", "layers": [0, 2]}]


class Rows(torch.utils.data.Dataset):
    """Samples as a map-style data set."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


#: Options of one step of plain SGD.
ONE_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "report_to": [],
    "use_cpu": True,
}


def trainer(model, folder, samples=None, collator=collate, **options):
    defaults = ONE_STEP | {
        "output_dir": str(folder),
        "remove_unused_columns": False,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    extra = {k: options.pop(k) for k in ("compute_metrics", "eval_dataset") if k in options}
    return Trainer(
        model,
        TrainingArguments(**defaults | options),
        data_collator=collator,
        train_dataset=Rows(samples or make_samples()[:4]),
        **extra,
    )


def update(model, folder, **options):
    """Return the change of all weights that one optimizer step of Trainer makes."""
    model = copy.deepcopy(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer(model, folder, **options).train()
    return torch.cat([(p.detach() - before[n]).flatten() for n, p in model.named_parameters()])


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: r["name"])
def test_accumulated_gradients_equal_those_of_the_large_batch(router, tmp_path):
    model = make_model(router, seed=3)
    samples = make_samples()[:4]
    supervised = [int((labels[1:] != IGNORE).sum()) for _, labels, _ in samples]
    assert len(set(supervised)) > 1  # a mean of the micro-batches' means would differ
    large = update(model, tmp_path, per_device_train_batch_size=4)
    small = update(model, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert large.norm() > 0.1
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_accumulated_gradients_with_a_label_for_every_token(side, tmp_path):
    """After padding on the left the first token is never predicted, but Trainer counts it."""
    rows = [(ids, ids.clone(), images) for ids, _, images in make_samples()[:4]]
    for _, labels, _ in rows:
        labels[0] = IGNORE
    model = make_model(seed=3)
    collate_rows = functools.partial(collate, side=side)
    sizes = ((4, 1), (1, 4))
    large, small = (
        update(
            model,
            tmp_path,
            samples=rows,
            collator=collate_rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        for size, steps in sizes
    )
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-4)


def test_trainer_predicts_and_computes_metrics(tmp_path):
    model = make_model(ROUTERS[2], seed=3)
    samples = make_samples()[:4]
    seen = {}

    def compute_metrics(prediction):
        seen["shapes"] = [prediction.predictions.shape, prediction.label_ids.shape]
        return {"rows": len(prediction.predictions)}

    tool = trainer(
        model, tmp_path, samples, compute_metrics=compute_metrics, per_device_eval_batch_size=2
    )
    predicted = tool.predict(Rows(samples))
    batch = collate(samples)
    with torch.no_grad():
        want = model.eval()(**batch)
    assert seen["shapes"] == [want.logits.shape, batch["labels"].shape]
    place = batch["attention_mask"].bool().numpy()
    np.testing.assert_allclose(
        predicted.predictions[place], want.logits.numpy()[place], atol=1e-5, rtol=1e-4
    )
    assert predicted.metrics["test_rows"] == 4
    assert tool.evaluate(Rows(samples[:2]))["eval_rows"] == 2


@pytest.mark.parametrize(
    "further", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}]
)
def test_gradient_checkpointing_recomputes_layers_and_changes_nothing(further, tmp_path):
    model = make_model(ROUTERS[2], seed=3)
    ran = []
    for layer in model.language.layers:
        layer.register_forward_pre_hook(lambda *_: ran.append(1))
    plain, once = update(model, tmp_path), len(ran)
    ran.clear()
    tool = copy.deepcopy(model)
    before = {n: p.detach().clone() for n, p in tool.named_parameters()}
    trainer(tool, tmp_path, gradient_checkpointing=True, **further).train()
    assert tool.checkpoint_layers
    assert tool.vision.checkpoint_layers
    again = torch.cat([(p.detach() - before[n]).flatten() for n, p in tool.named_parameters()])
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)
    assert len(ran) == 2 * once


def test_neftune_adds_noise_of_the_papers_size(tmp_path):
    """Uniform noise of at most alpha / sqrt(T D) on the embeddings (arXiv 2310.05914)."""
    model = make_model(seed=3).train()
    ids, places = torch.randint(3, IMAGE, (4, 50)), np.arange(200)
    quiet = model._embed(ids, places)
    handle = activate_neftune(model, 5.0)
    noise = (model._embed(ids, places) - quiet).abs().max()
    most = 5.0 / (50 * 32) ** 0.5
    assert 0.99 * most < noise <= 1.001 * most
    deactivate_neftune(model, handle)
    assert torch.equal(model._embed(ids, places), quiet)
    silent = update(model, tmp_path)
    assert torch.equal(silent, update(model, tmp_path))
    assert not torch.allclose(silent, update(model, tmp_path, neftune_noise_alpha=5.0), atol=1e-3)


def test_trainer_trains_in_bf16(tmp_path):
    model = make_model(ROUTERS[2], seed=3)
    close = {"atol": 0.05, "rtol": 0.2}
    torch.testing.assert_close(update(model, tmp_path, bf16=True), update(model, tmp_path), **close)


def test_torch_compile_leaves_the_loop_as_it_is():
    """The host's bookkeeping is not traced; `compile_layers` compiles what can be."""
    model = make_model(ROUTERS[2], seed=3).train()
    compiled = torch.compile(model, backend="eager")
    for which in (None, [0, 2], [1, 4]):
        batch = collate(make_samples(which))
        want, found = model(**batch, return_logits=True), compiled(**batch, return_logits=True)
        assert torch.equal(found.logits, want.logits)
        assert found.trace.visual_rows == want.trace.visual_rows
        found.loss.backward()
    inputs = without(batch, "labels")
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(compiled.generate(**inputs, **options), model.generate(**inputs, **options))


def test_trainer_takes_a_compiled_model(tmp_path):
    model = make_model(ROUTERS[2], seed=3)
    options = {"torch_compile": True, "torch_compile_backend": "eager"}
    compiled = update(model, tmp_path, **options)
    torch.testing.assert_close(compiled, update(model, tmp_path), atol=1e-6, rtol=1e-5)


def test_peft_with_a_task_type_trains_only_its_weights(tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(make_model(ROUTERS[1], seed=3), lora)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer(model, tmp_path, gradient_checkpointing=True).train()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_B" in name for name in changed)  # A has no gradient while B is zero
    batch = collate(make_samples())
    with torch.no_grad():
        plain = model.eval()(**batch)
        assert plain.trace.visual_rows
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, plain.logits, atol=1e-4, rtol=1e-3)
    inputs = without(batch, "labels")
    assert merged.generate(**inputs, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2


def conversations(count=4):
    """Return rows of a TRL data set with images, and answers of different lengths."""
    answers = ["A cat.", "Two birds on the tree.", "It is red.", "No."]
    return Dataset.from_list(
        [
            {
                "images": [picture(n)],
                "prompt": [{"role": "user", "content": "What is it?"}],
                "completion": [{"role": "assistant", "content": answers[n % 4]}],
            }
            for n in range(count)
        ]
    )


def sft(model, processor, folder, **options):
    trl = pytest.importorskip("trl")
    defaults = ONE_STEP | {
        "output_dir": str(folder),
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return trl.SFTTrainer(
        model,
        args=trl.SFTConfig(**defaults | options),
        train_dataset=conversations(),
        processing_class=processor,
    )


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: r["name"])
def test_sft_trainer_computes_our_loss_and_its_gradient(router, tmp_path):
    model, processor = make_talker(dict(router, min_rows=1) if router["name"] == "dpe" else router)
    tool = sft(model, processor, tmp_path)
    batch = tool.data_collator([dict(row) for row in tool.train_dataset])
    model.train()
    want = model(**batch)
    loss = tool.compute_loss(model, dict(batch))
    torch.testing.assert_close(loss, want.loss, atol=1e-5, rtol=1e-4)
    weights = list(model.parameters())
    ours = torch.autograd.grad(want.loss, weights, allow_unused=True)
    theirs = torch.autograd.grad(loss, weights, allow_unused=True)
    assert sum(a is not None for a in ours) > 10
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-3)
    tool.train()
    (row,) = [row for row in tool.state.log_history if "mean_token_accuracy" in row]
    assert np.isfinite(row["loss"])


def test_sft_trainer_with_peft(tmp_path):
    trl = pytest.importorskip("trl")
    model, processor = make_talker({"name": "fastv", "k": 1})
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    tool = sft(get_peft_model(model, lora), processor, tmp_path)
    assert isinstance(tool, trl.SFTTrainer)
    tool.train()
    assert np.isfinite(tool.state.log_history[0]["loss"])


def test_trainer_saves_resumes_and_loads_its_best_model(tmp_path):
    model = make_model({"name": "fastv", "k": 1}, seed=3)
    options = {
        "max_steps": 4,
        "learning_rate": 0.1,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 2,
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "eval_dataset": Rows(make_samples()[:4]),
    }
    whole = trainer(copy.deepcopy(model), tmp_path, **options)
    whole.train()
    again = trainer(copy.deepcopy(model), tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    best = type(model).from_pretrained(whole.state.best_model_checkpoint).state_dict()
    for tool in (whole, again):
        for name, weight in tool.model.state_dict().items():
            torch.testing.assert_close(weight, best[name], msg=name)
    assert whole.state.global_step == again.state.global_step == 4
