"""Arguments of Hugging Face's models: honoured, passed over, or refused by name."""

import pytest
import torch
from transformers import GenerationConfig
from transformers.utils.logging import get_logger

from dpn.common.errors import SettingError

from .conftest import collate, make_model, make_samples, without


@pytest.fixture(scope="module")
def model():
    return make_model({"name": "dpe", "layers": [0, 2], "min_rows": 1}, seed=3)


@pytest.fixture(scope="module")
def batch():
    return without(collate(make_samples(), "left"), "labels")


NEUTRAL = {
    "inputs_embeds": None,
    "output_attentions": False,
    "output_hidden_states": None,
    "output_router_logits": False,
    "cache_position": torch.arange(3),
    "token_type_ids": torch.zeros(1),
    "is_causal": True,
    "shift_labels": None,
    "an_argument_of_the_future": None,
}
REFUSED = {
    "inputs_embeds": (torch.zeros(1, 2, 32), "found by their token ids; give input_ids"),
    "output_attentions": (True, "attention probabilities are not kept"),
    "output_hidden_states": (True, "different numbers of visual rows"),
    "position_ids": (torch.arange(3)[None], "positions follow from the attention_mask"),
    "shift_labels": (torch.zeros(1, 2), "give labels"),
    "cu_seq_lens_q": (torch.tensor([0, 2]), "one per row"),
    "is_causal": (False, "always causal"),
    "output_router_logits": (True, "auxiliary loss"),
    "typo": (1, "no such argument"),
}


@torch.no_grad()
def test_neutral_arguments_change_nothing(model, batch):
    want = model(**batch).logits
    mask = batch["attention_mask"]
    places = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    for name, value in {**NEUTRAL, "position_ids": places}.items():
        assert torch.equal(model(**batch, **{name: value}).logits, want), name


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_matter_are_refused_by_name(name, model, batch):
    value, sentence = REFUSED[name]
    with pytest.raises(SettingError, match=rf"{name} is not supported: .*{sentence}"):
        model(**batch, **{name: value})


def test_missing_ids_are_named(model):
    with pytest.raises(SettingError, match="without input_ids"):
        model()
    with pytest.raises(SettingError, match="inputs_embeds is not supported"):
        model(inputs_embeds=torch.zeros(1, 2, 32))


@torch.no_grad()
def test_a_tuple_is_returned_on_request(model, batch):
    out = model(**batch)
    logits, trace = model(**batch, return_dict=False)
    assert torch.equal(logits, out.logits)
    assert trace.visual_rows == out.trace.visual_rows


@torch.no_grad()
def test_hidden_states_of_a_config_are_refused(batch):
    model = make_model()
    model.config.output_hidden_states = True
    with pytest.raises(SettingError, match="output_hidden_states"):
        model(**batch)


@torch.no_grad()
def test_the_base_model_gives_what_the_head_reads(model, batch):
    """TRL's trainers call it in place of `forward`."""
    want = model(**batch)
    hidden = model.base_model(**batch).last_hidden_state
    mask = batch["attention_mask"].bool()
    assert hidden.shape == (*mask.shape, 32)
    assert not hidden[~mask].any()
    torch.testing.assert_close(model.lm_head(hidden)[mask], want.logits[mask])
    assert model.base_model.get_input_embeddings() is model.language.embed_tokens


def test_training_without_labels_warns_that_routers_read_the_answers(model, batch, monkeypatch):
    said = []
    monkeypatch.setattr(get_logger("dpn.model.modeling"), "warning_once", said.append)
    end = torch.full((5,), 3)
    model(**batch)
    model.train()
    try:
        model(**collate(make_samples()))
        model(**batch, instruction_end=end)
        model(**batch, compress=False)
        assert not said
        model(**batch)
        assert "reads the answers" in said[0]
    finally:
        model.eval()


GENERATION = {
    "cache_implementation": ("static", "quantized", "offloaded", "paged"),
    "prefill_chunk_size": (4,),
    "inputs_embeds": (torch.zeros(1, 2, 32),),
    "output_hidden_states": (True,),
}


@pytest.mark.parametrize("name", GENERATION)
def test_options_of_generate_that_do_not_fit_are_refused(name, model, batch):
    for value in GENERATION[name]:
        with pytest.raises(SettingError, match=name):
            model.generate(**batch, max_new_tokens=2, return_dict_in_generate=True, **{name: value})
    if name == "cache_implementation":
        config = GenerationConfig(max_new_tokens=2, cache_implementation="static")
        with pytest.raises(SettingError, match=name):
            model.generate(**batch, generation_config=config)
        dynamic = model.generate(**batch, max_new_tokens=2, cache_implementation="dynamic")
        assert torch.equal(dynamic, model.generate(**batch, max_new_tokens=2))


def test_a_typo_in_generate_is_refused(model, batch):
    with pytest.raises(ValueError, match="max_new_token"):
        model.generate(**batch, max_new_token=2)


def test_checkpointing_of_some_layers_is_refused():
    model = make_model()
    for further in (
        {"every_n_layers": 2},
        {"offload": True},
        {"activation_checkpointing_kwargs": {"context_fn": print, "use_reentrant": False}},
    ):
        with pytest.raises(SettingError, match="recomputes every layer"):
            model.activation_checkpointing_enable(**further)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    assert model.checkpoint_layers
    assert model.vision.checkpoint_layers
    model.activation_checkpointing_disable()
    assert not model.checkpoint_layers
    assert not model.vision.checkpoint_layers


def test_labels_that_trainer_counts_but_no_column_predicts_are_reported(model, monkeypatch):
    said = []
    monkeypatch.setattr(get_logger("dpn.model.modeling"), "warning_once", said.append)
    for side in ("left", "right"):
        model(**collate(make_samples(), side), num_items_in_batch=5)
        whole = [(ids, ids.clone(), images) for ids, _, images in make_samples()]
        batch = collate(whole, side)
        model(**batch)
        assert not said
        model(**batch, num_items_in_batch=5)
        assert bool(said) == (side == "left")
        said.clear()
