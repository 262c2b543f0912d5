"""Adapters, quantised weights and other linear layers in compressed Hugging Face VLMs."""

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

import dpn
from dpn.common.errors import SettingError
from tests.core._vlm_routers import ROUTERS, answered, build, language, sample

slow = pytest.mark.slow
#: All routers; those that are slow act like one of the others on linear layers.
EVERY = [
    pytest.param(name, marks=() if name in ("none", "fastv", "sparsevlm", "yopo") else slow)
    for name in ROUTERS
]


def lora(model, **further):
    """Put LoRA on the text model's layers, with weights that change the output."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config = peft.LoraConfig(r=4, target_modules=list(names), **further)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return wrapped


@torch.no_grad()
@pytest.mark.parametrize("inner", [False, True])
def test_adapters_from_before_act_in_the_copy(inner):
    plain, given = build("llava_next"), sample("llava_next")
    without = plain(**given.inputs).logits
    wrapped = lora(plain).eval()
    stock = wrapped(**given.inputs).logits
    assert not torch.allclose(stock, without, atol=1e-3)
    source = wrapped.get_base_model() if inner else wrapped
    assert torch.equal(dpn.compress(source, "none")(**given.inputs).logits, stock)


@torch.no_grad()
@pytest.mark.parametrize("router", EVERY)
def test_every_router_equals_itself_after_merging_the_adapter(router):
    """LoRA computes whole layers where the router uses a part; the merged weights are sliced."""
    given = sample("llava_next")
    wrapped = lora(build("llava_next")).eval()
    fast = dpn.compress(wrapped, router, **ROUTERS[router])
    adapted = fast(**given.inputs).logits
    with wrapped.disable_adapter():
        off = fast(**given.inputs).logits
    assert not torch.allclose(off, adapted, atol=1e-3)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(fast(**given.inputs).logits, adapted, atol=1e-4, rtol=1e-3)
    sliced = dpn.compress(merged, router, **ROUTERS[router])(**given.inputs).logits
    torch.testing.assert_close(sliced, adapted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("router", ["fastv", "yopo"])
def test_an_adapter_is_trained_through_the_copy(router):
    wrapped = lora(build("qwen3_vl")).train()
    fast = dpn.compress(wrapped, router, **ROUTERS[router])
    trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    fast(**answered(sample("qwen3_vl").inputs, torch.tensor([[17, 23, 42, 8]]))).loss.backward()
    assert all("lora" in name for name, p in fast.named_parameters() if p.grad is not None)
    torch.optim.SGD(trained.values(), 0.1).step()
    moved = [name for name in trained if not torch.equal(trained[name], before[name])]
    layers = {name.split("layers.")[1][0] for name in moved}
    assert layers == {"0", "1", "2", "3"}


def test_adapters_outside_of_the_layers_are_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = build("llava")
    config.num_layers, config.token_dim, config.num_attention_heads = 4, 32, 4
    wrapped = peft.PeftModel(model, peft.LoraConfig(target_modules=["q_proj"]))
    wrapped.peft_config["default"] = config
    with pytest.raises(SettingError, match="PROMPT_TUNING acts in the wrapper of peft"):
        dpn.compress(wrapped, "fastv")


class Doubled(nn.Module):
    """A linear layer of another class, whose weight cannot be sliced."""

    def __init__(self, linear, has_sizes=True):
        super().__init__()
        self.part, self.bias = nn.Parameter(linear.weight.detach() / 2), linear.bias
        if has_sizes:
            self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x):
        return nn.functional.linear(x, 2 * self.part, self.bias)


def replaced(model, **further):
    for layer in language(model).layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, Doubled(child, **further))
    return model


@torch.no_grad()
@pytest.mark.parametrize("router", EVERY)
def test_linear_layers_of_another_class_work_with_every_router(router):
    given = sample("llava_next")
    expected = dpn.compress(build("llava_next"), router, **ROUTERS[router])(**given.inputs).logits
    model = replaced(build("llava_next"))
    found = dpn.compress(model, router, **ROUTERS[router])(**given.inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_linear_layers_that_hide_their_size_are_refused_where_it_is_needed():
    model, given = replaced(build("llava"), has_sizes=False), sample("llava")
    dpn.compress(model, "fastv")(**given.inputs)
    with pytest.raises(SettingError, match="Doubled does not tell its number of in_features"):
        dpn.compress(model, "sparse_ffn")(**given.inputs)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("router", ROUTERS)
def test_quantised_layers(router, bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    sizes = {"hidden_size": 128, "intermediate_size": 128}
    build("llava_next", **sizes).half().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=config, device_map=0, dtype=torch.float16
    ).eval()
    inputs = {k: v.cuda() for k, v in sample("llava_next").inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].half()
    fast = dpn.compress(model, router, **ROUTERS[router])
    out = fast(**inputs).logits
    assert out.isfinite().all()
    if router == "none":
        torch.testing.assert_close(out, model(**inputs).logits, atol=2e-2, rtol=1e-2)
