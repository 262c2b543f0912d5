"""What a compressed model shares with the original, and what it does not."""

import copy
import warnings

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText

import dpn
from tests.core._vlm_routers import FAMILIES, ROUTERS, answered, build, language, sample, shared

FEW = ("llava_next", "qwen3_vl", "smolvlm")
ANSWER = torch.tensor([[17, 23, 42, 8]])


@pytest.fixture(params=FEW)
def name(request):
    return request.param


@torch.no_grad()
def test_a_deep_copy_is_independent(name):
    model, given = build(name), sample(name)
    fast = dpn.compress(model, "fastv", k=1)
    expected = fast(**given.inputs).logits
    twin = copy.deepcopy(fast)
    assert torch.equal(twin(**given.inputs).logits, expected)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(twin(**given.inputs).logits, expected)
    again = dpn.restore(twin)
    assert again is not model
    assert torch.equal(again.lm_head.weight, twin.lm_head.weight)


@torch.no_grad()
def test_saving_writes_a_stock_checkpoint(name, tmp_path):
    model, given = build(name), sample(name)
    fast = dpn.compress(model, "fastv", k=1)
    assert list(fast.state_dict()) == list(model.state_dict())
    model.save_pretrained(tmp_path / "stock")
    fast.save_pretrained(tmp_path / "fast")
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "fast" / file).read_bytes() == (tmp_path / "stock" / file).read_bytes()
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "fast").eval()
    assert type(reloaded) is type(model)
    assert torch.equal(reloaded(**given.inputs).logits, model(**given.inputs).logits)
    again = dpn.compress(reloaded, "fastv", k=1)
    assert torch.equal(again(**given.inputs).logits, fast(**given.inputs).logits)


@torch.no_grad()
def test_loading_and_casting_change_both(name):
    model, given = build(name), sample(name)
    fast, other = dpn.compress(model, "none"), build(name, seed=1)
    fast.load_state_dict(other.state_dict())
    expected = other(**given.inputs).logits
    assert torch.equal(model(**given.inputs).logits, expected)
    assert torch.equal(fast(**given.inputs).logits, expected)
    assert fast.to(torch.bfloat16) is fast
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.inputs.items()}
    expected = other.bfloat16()(**inputs).logits
    assert model.dtype == fast.dtype == torch.bfloat16
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(fast(**inputs).logits, expected)


@torch.no_grad()
def test_restore_returns_the_original(name):
    model = shared(name)
    assert dpn.restore(dpn.compress(model, "fastv")) is model
    with pytest.raises(ValueError, match="expects a model that"):
        dpn.restore(model)


@torch.no_grad()
def test_configs_of_the_copy_are_its_own(name):
    model, given = build(name), sample(name)
    before = model(**given.inputs).logits
    fast = dpn.compress(model, "none")
    fast.generation_config.max_new_tokens = 7
    fast.config.text_config.use_cache = False
    fast.config.name_or_path = "elsewhere"
    assert model.generation_config.max_new_tokens is None
    assert model.config.text_config.use_cache
    assert model.config.name_or_path == ""
    assert fast(**given.inputs, use_cache=False).past_key_values is None
    implementation = language(model).config._attn_implementation
    fast.set_attn_implementation("eager")  # of the tower, which both share
    assert language(model).config._attn_implementation == implementation
    torch.testing.assert_close(model(**given.inputs).logits, before, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fast(**given.inputs).logits, before, atol=1e-5, rtol=1e-4)
    model.set_attn_implementation("sdpa")
    assert torch.equal(fast(**given.inputs).logits, before)


@torch.no_grad()
def test_embeddings_that_the_copy_resizes_are_its_own(name):
    model, given = build(name), sample(name)
    before = model(**given.inputs).logits
    fast = dpn.compress(model, "none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast.resize_token_embeddings(140)
    assert fast(**given.inputs).logits.shape[-1] == fast.config.get_text_config().vocab_size == 140
    assert torch.equal(model(**given.inputs).logits, before)
    assert model.config.get_text_config().vocab_size == 128


@torch.no_grad()
def test_hooks_of_the_copy_do_not_reach_the_original(name):
    model, given = build(name), sample(name)
    fast = dpn.compress(model, "none")
    seen = []

    def hook(module, args, out):
        seen.append(type(module).__name__)

    for module in (fast, fast.model, language(fast), language(fast).layers[0]):
        module.register_forward_hook(hook)
    language(fast).layers[0].self_attn.register_forward_hook(hook)
    language(fast).layers[0].mlp.register_forward_hook(hook)
    model(**given.inputs)
    assert not seen
    fast(**given.inputs)
    assert len(seen) == 6
    fast.add_module("further", torch.nn.Linear(2, 2))
    assert not hasattr(model, "further")


@torch.no_grad()
def test_hooks_of_the_original_act_in_the_copy_if_they_came_first():
    model, given = build("llava"), sample("llava")
    language(model).layers[1].self_attn.o_proj.register_forward_hook(lambda *args: 2 * args[2])
    language(model).layers[2].mlp.register_forward_hook(lambda *args: 3 * args[2])
    stock = model(**given.inputs).logits
    assert torch.equal(dpn.compress(model, "none")(**given.inputs).logits, stock)


@torch.no_grad()
def test_adapters_of_the_copy_do_not_reach_the_original():
    model, given = build("llava_next"), sample("llava_next")
    before = model(**given.inputs).logits
    config = peft.LoraConfig(
        r=2,
        init_lora_weights=False,
        target_modules=r".*language_model.layers.*(q_proj|o_proj|up_proj|down_proj)",
    )
    wrapped = peft.get_peft_model(dpn.compress(model, "fastv", k=1), config).eval()
    plain = dpn.compress(model, "fastv", k=1)(**given.inputs).logits
    assert not torch.allclose(wrapped(**given.inputs).logits, plain, atol=1e-3)
    assert torch.equal(model(**given.inputs).logits, before)
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(**given.inputs).logits, plain)
    assert wrapped.base_model.model.dpn.trace.share[0] < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "router"), zip(FEW, ("fastv", "static", "yopo"), strict=True), indirect=["name"]
)
def test_a_compiled_copy_computes_the_same(name, router):
    model, given = build(name), sample(name)
    fast = dpn.compress(model, router, **ROUTERS[router])
    inputs = answered(given.inputs, ANSWER)
    expected = fast(**inputs)
    compiled = torch.compile(fast, backend="aot_eager")
    for _ in range(2):
        out = compiled(**inputs)
        torch.testing.assert_close(out.logits, expected.logits, atol=1e-5, rtol=1e-4)
    out.loss.backward()
    assert all(p.grad is not None for p in language(model).layers.parameters())
    with torch.no_grad():
        options = {"max_new_tokens": 3, "do_sample": False}
        tokens = fast.generate(**given.inputs, **options)
        assert torch.equal(compiled.generate(**given.inputs, **options), tokens)
    torch._dynamo.reset()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_original_computes_the_same_while_copies_live(family):
    model, given = build(family), sample(family)
    before = model(**given.inputs).logits
    tokens = model.generate(**given.inputs, max_new_tokens=3, do_sample=False)
    copies = [dpn.compress(model, router, **ROUTERS[router]) for router in ROUTERS]
    for fast in copies:
        fast(**given.inputs)
        fast.generate(**given.inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(model(**given.inputs).logits, before)
    again = model.generate(**given.inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(again, tokens)
