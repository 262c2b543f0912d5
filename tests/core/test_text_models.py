"""The lists of text models in `dpn.decoder.text_models` hold for the installed transformers."""

import dataclasses

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dpn import DPNConfig, DPNForConditionalGeneration
from dpn.common.errors import SettingError
from dpn.decoder import text_models
from dpn.decoder.text_models import DIVISIBLE, EXACT, GIVEN_POSITIONS, READABLE, check_text_model
from dpn.routers.base import Router
from dpn.tokens import LayerPlan
from tests.tiny import VISION

IMAGE = 62
SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2},
    **{"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "n_routed_experts": 4},
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "q_lora_rank": 16},
    **{"kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"n_group": 1, "topk_group": 1, "max_window_layers": 4, "tie_word_embeddings": False},
}
#: Ways to leave out sliding windows, of which a type accepts at least one.
FULL = [
    {"layer_types": ["full_attention"] * 4, "sliding_window": None},
    {"layer_types": ["full_attention"] * 4},
    {"sliding_window": None},
    {},
]


def tiny(kind, **change):
    """Build a small config of a model type, without sliding windows where it can."""
    made = CONFIG_MAPPING[kind]
    known = {field.name for field in dataclasses.fields(made)}
    sizes = {k: v for k, v in SIZES.items() if k in known or k in made.attribute_map}
    for number, full in enumerate(FULL, 1):
        try:
            kept = {k: v for k, v in full.items() if k in known}
            return made(**{**sizes, **kept, **change})
        except Exception:
            if number == len(FULL):
                raise
    return None


def pair(config):
    """Return Hugging Face's model with random weights, and ours with the same."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    ours = DPNForConditionalGeneration(
        DPNConfig(text_config=config, vision_config=VISION, image_token_id=IMAGE)
    ).eval()
    ours.language.load_state_dict(theirs.base_model.state_dict())
    ours.lm_head.load_state_dict(theirs.get_output_embeddings().state_dict())
    return theirs, ours


@torch.no_grad()
def is_exact(config):
    """Return whether logits of a padded batch, and those from the cache, equal Hugging Face's."""
    theirs, ours = pair(config)
    ids = torch.randint(3, 60, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    want = [
        theirs(ids[:1], use_cache=False).logits[0],
        theirs(ids[1:, :9], use_cache=False).logits[0],
    ]
    found = ours(input_ids=ids, attention_mask=mask).logits
    cache = ours(input_ids=ids[:1, :8], use_cache=True).past_key_values
    steps = [
        ours(
            input_ids=ids[:1, t : t + 1],
            attention_mask=mask[:1, : t + 1],
            past_key_values=cache,
        ).logits[0, -1]
        for t in range(8, 12)
    ]
    size = float(torch.cat(want).abs().max())
    errors = [found[0] - want[0], found[1, :9] - want[1], torch.stack(steps) - want[0][8:]]
    return max(float(error.abs().max()) for error in errors) < 1e-4 * size


def without_lists(monkeypatch):
    """Let every text model through."""
    everything = type("Everything", (), {"__contains__": lambda self, kind: True})()
    for name in ("EXACT", "READABLE", "DIVISIBLE"):
        monkeypatch.setattr(text_models, name, everything)
    monkeypatch.setattr("dpn.decoder.layer.check_text_model", lambda config: None)


def tried(test, *arguments):
    """Return the outcome of a trial; a model type that cannot be built or run has none."""
    try:
        return test(*arguments)
    except Exception:
        return False


def is_small(config):
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in theirs.parameters()) < 3e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_the_list_of_exact_models(kind, monkeypatch):
    """Hybrids and others whose real configs do not fit may pass the trial without being listed."""
    without_lists(monkeypatch)
    if kind in EXACT:
        assert is_exact(tiny(kind))
    elif tried(lambda: is_small(tiny(kind))) and tried(lambda: is_exact(tiny(kind))):
        assert kind in {"minimax", "qwen3_5_text", "qwen3_next"}


def test_every_exact_model_is_one_of_transformers():
    assert EXACT | GIVEN_POSITIONS >= READABLE >= DIVISIBLE >= GIVEN_POSITIONS
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) >= EXACT - {"iquestcoder"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(EXACT))
def test_settings_that_act_outside_of_the_layers_are_refused(kind):
    """Every number and switch is changed in turn: either it is refused, or logits stay equal."""
    base = tiny(kind)
    for field in dataclasses.fields(base):
        value = getattr(base, field.name, None)
        if field.name in {*SIZES, "dtype"} or field.name.startswith(("output_", "return_")):
            continue
        if isinstance(value, bool):
            others = [not value]
        elif isinstance(value, float):
            others = [value * 1.7 + 0.3]
        else:
            others = [1.7, 2] if value is None else []
        for other in others:
            try:
                config = tiny(kind, **{field.name: other})
                check_text_model(config)
                theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
                theirs(torch.ones(1, 4, dtype=torch.long), use_cache=False)
            except SettingError:
                continue
            except Exception:  # a value that Hugging Face refuses, too
                continue
            assert is_exact(config), (field.name, value, other)


class Parts(Router):
    """Computes layers in parts, all of which are there."""

    plan_of = None

    def within(self, index, tokens, context):
        return self.plan_of(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(EXACT))
@torch.no_grad()
def test_the_lists_of_readable_and_divisible_models(kind, monkeypatch):
    without_lists(monkeypatch)
    odd = {"residual_multiplier": 0.5, "attention_multiplier": 0.3}
    known = {field.name for field in dataclasses.fields(CONFIG_MAPPING[kind])}
    theirs, ours = pair(tiny(kind, **{k: v for k, v in odd.items() if k in known}))
    ids = torch.randint(3, 60, (2, 12))

    def readable():
        seen = {}

        def at(self, when, index, tokens, context):
            if when == "post":
                seen[index] = context.attention_scores(tokens, [[n - 1] for n in tokens.lengths])
            return tokens

        with monkeypatch.context() as patch:
            patch.setattr(type(ours.router), "at", at)
            ours(input_ids=ids[:1])
        whole = theirs(ids[:1], output_attentions=True, use_cache=False).attentions
        return all(
            torch.allclose(seen[i][0][0], a[0, :, -1], atol=1e-4) for i, a in enumerate(whole)
        )

    def divisible():
        ids[:, 3] = IMAGE
        inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16)}
        want = ours(**inputs).logits
        for plan in (
            lambda tokens: LayerPlan(heads=(0, 1)),
            lambda tokens: LayerPlan(ffn=48),
            lambda tokens: LayerPlan(scale=torch.ones(sum(tokens.visual_rows))),
        ):
            router = Parts(**ours.router.sizes)
            router.plan_of = plan
            error = (ours(**inputs, router=router).logits - want).abs().max()
            if error > 1e-4 * want.abs().max():
                return False
        return True

    assert bool(tried(readable)) == (kind in READABLE)
    assert bool(tried(divisible)) == (kind in DIVISIBLE)


REFUSED = {
    "phi": ({"model_type": "phi"}, "The text model 'phi' is not supported"),
    "gemma2": ({"model_type": "gemma2"}, "'gemma2' is not supported.*llama, mistral"),
    "gemma3": ({"model_type": "gemma3_text"}, "'gemma3_text' is not supported"),
    "cohere": ({"model_type": "cohere"}, "'cohere' is not supported"),
    "llama4": ({"model_type": "llama4_text"}, "'llama4_text' is not supported"),
    "stablelm": ({"model_type": "stablelm"}, "'stablelm' is not supported"),
    "gpt2": ({"model_type": "gpt2"}, "'gpt2' is not supported"),
    "a window": ({"model_type": "mistral"}, "sliding_window=4096.*set sliding_window=null"),
    "a switched window": (
        {"model_type": "qwen2_moe", "use_sliding_window": True},
        "set use_sliding_window=false",
    ),
    "windows of some layers": ({"model_type": "cwm"}, "sliding_window=|layer_types"),
    "a scale": (
        {"model_type": "granite", "embedding_multiplier": 12.0},
        "embedding_multiplier=12.0 of the text model granite",
    ),
    "a scale of logits": ({"model_type": "granite", "logits_scaling": 8.0}, "logits_scaling=8.0"),
    "a bias": ({"model_type": "phimoe", "lm_head_bias": True}, "lm_head_bias=True"),
    "heads": (
        {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 3},
        "num_attention_heads=4 of the text model is not a multiple of num_key_value_heads=3",
    ),
    "no layers": ({"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers=0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_text_models_are_refused_by_name(case):
    values, sentence = REFUSED[case]
    values = dict(values)
    with pytest.raises(SettingError, match=sentence):
        check_text_model(AutoConfig.for_model(values.pop("model_type"), **values))


def test_a_model_is_built_after_the_check():
    check_text_model(LlamaConfig())
    with pytest.raises(SettingError, match="'gemma2'"):
        DPNForConditionalGeneration(DPNConfig(text_config={"model_type": "gemma2"}))
