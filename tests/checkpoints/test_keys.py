"""Tests of the table of names against names written by hand and against the modules."""

import pytest
from transformers import CLIPVisionModel, ConvNextConfig, ConvNextModel

from dpn import vision
from dpn.checkpoints.keys import FORMATS, detect, part_of, rename
from tests.checkpoints.conftest import as_on_disk, as_original, as_ours, clip_config, hf_llava

DEPTHS = (1, 1, 3, 1)
TOWER = {"width": 8, "depth": 4, "heads": 2, "ffn_size": 12, "slow_dims": (2, 3, 4, 6)}


def timm_names(scale):
    """Names of a ConvNeXt as timm builds it, with its head."""
    names = [f"stem.{i}" for i in (0, 1)]
    names += [f"stages.{s}.downsample.{i}" for s in (1, 2, 3) for i in (0, 1)]
    blocks = [f"stages.{s}.blocks.{b}" for s, depth in enumerate(DEPTHS) for b in range(depth)]
    names += [f"{b}.{x}" for b in blocks for x in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2")]
    names += ["head.norm", "head.pre_logits.fc", "head.fc"]
    return [f"{n}.{kind}" for n in names for kind in ("weight", "bias")] + [
        f"{b}.{scale}" for b in blocks
    ]


def slow_names():
    config = ConvNextConfig(depths=list(DEPTHS), hidden_sizes=list(TOWER["slow_dims"]))
    return [n for n in ConvNextModel(config).state_dict() if not n.startswith("layernorm.")]


def adapter_names():
    joints = [f"align_stages_latent.{i}." for i in range(3)]
    pieces = ["slow_conv", "slow_proj", "fast_conv", "fast_proj", "gate.0", "gate.2"]
    names = [joint + piece for joint in joints for piece in pieces]
    names += ["align_stages.0.fast_proj", "align_stages.0.slow_proj"]
    return [f"model.vision_tower.{n}.{kind}" for n in names for kind in ("weight", "bias")]


@pytest.mark.parametrize("spell", [as_original, as_on_disk, dict, as_ours])
def test_llava_in_every_spelling(spell):
    state = hf_llava().state_dict()
    found = rename(spell(state))
    assert list(found.ours.values()) == list(as_ours(state))
    assert found.gives >= {"language", "lm_head", "projector"}
    assert not found.dropped
    assert not found.unknown


def test_hugging_face_names_with_the_level_of_4x():
    names = [
        n.replace("vision_tower.", "vision_tower.vision_model.") for n in hf_llava().state_dict()
    ]
    assert list(rename(names).ours.values()) == list(as_ours(hf_llava().state_dict()))


@pytest.mark.parametrize("scale", ["weight", "gamma"])
def test_llava_hr_fills_its_tower(scale):
    names = list(as_original(hf_llava().state_dict()))
    tower = "model.vision_tower."
    names = [
        n.replace(f"{tower}vision_tower.", f"{tower}fast_vision_tower.vision_tower.") for n in names
    ]
    names += [f"{tower}slow_vision_tower.vision_tower.{n}" for n in timm_names(scale)]
    found = rename([*names, *adapter_names()], clip="vision.fast")
    assert found.kind.title == "LLaVA-HR"
    want = vision.build("clip_convnext", **TOWER, slow_depths=DEPTHS).state_dict()
    want = {f"vision.{n}" for n in want if not n.startswith("slow.layernorm")}
    assert {n for n in found.ours.values() if n.startswith("vision")} == want
    assert found.dropped == tuple(n for n in names if ".head." in n)
    assert not found.unknown
    places = {"vision.fast", "vision.slow", "vision.adapters", "vision.merge"}
    assert found.gives == {*places, "projector", "language", "lm_head"}


@pytest.mark.parametrize("scale", ["weight", "gamma"])
def test_a_convnext_of_timm_and_of_hugging_face(scale):
    ours = {f"vision.slow.{n}" for n in slow_names()}
    found = rename(timm_names(scale))
    assert found.kind.title == "timm ConvNeXt"
    assert set(found.ours.values()) == ours
    for prefix in ("", "convnext."):
        extra = ["layernorm.weight", "classifier.weight"]
        names = [prefix + n for n in (*slow_names(), extra[0])] + extra[1:]
        found = rename(names)
        assert set(found.ours.values()) == ours
        assert len(found.dropped) == 2


def test_plain_clip_goes_where_the_target_keeps_it():
    names = list(CLIPVisionModel(clip_config()).state_dict())
    whole = [f"vision_model.{n}" for n in names]
    whole += ["vision_model.embeddings.position_ids", "logit_scale", "visual_projection.weight"]
    whole += ["text_model.embeddings.token_embedding.weight"]
    for spelled, dropped in ((names, 0), (whole, 4)):
        for place in ("vision.model", "vision.fast"):
            found = rename(spelled, clip=place)
            assert set(found.ours.values()) == {f"{place}.{n}" for n in names}
            assert len(found.dropped) == dropped


PAIR = {"projector.layers.0.weight", "projector.layers.2.bias"}


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        (["model.mm_projector.0.weight", "model.mm_projector.2.bias"], PAIR),
        (["mm_projector.0.weight", "mm_projector.2.bias"], PAIR),
        ([f"base_model.model.model.mm_projector.{n}" for n in ("0.weight", "2.bias")], PAIR),
        (["model.mm_projector.weight"], {"projector.layers.0.weight"}),
        (["model.mm_projector.0.bias", "model.embed_tokens.weight"], {"projector.layers.0.bias"}),
        (
            ["model.mm_projector.0.bias", "model.vision_tower.align_stages.0.slow_proj.bias"],
            {"projector.layers.0.bias", "vision.merge.slow_proj.bias"},
        ),
    ],
)
def test_a_projector_file(names, ours):
    found = rename(names)
    assert found.kind.title == "LLaVA projector"
    assert set(found.ours.values()) == ours
    assert "language" not in found.gives


def test_the_two_versions_of_the_router():
    llm = ["model.layers.7.mlp.up_proj.weight", "model.mm_projector.0.bias"]
    gate = "model.layers.7.pooling_router."
    deep = [f"{gate}{n}" for n in ("mlp1.0.weight", "mlp1.0.bias", "mlp1.1.weight")]
    conv = ["model.layers.7.experts.0.weight", "model.layers.7.experts.expert_0.weight"]
    found = rename([*llm, *deep, f"{gate}predictor.weight", *conv])
    router = [n for n in found.ours.values() if part_of(n) == "router"]
    assert router == [
        *("router.gates.7.0.weight", "router.gates.7.0.bias", "router.gates.7.1.weight"),
        *("router.gates.7.3.weight", "router.experts.7.0"),
    ]
    assert found.dropped == ("model.layers.7.experts.expert_0.weight",)
    assert "router" in found.gives
    shallow = rename([*llm, f"{gate}predictor.weight"])
    assert list(shallow.ours.values())[-1] == "router.gates.7.weight"


def test_a_vicuna_and_a_lightning_checkpoint():
    vicuna = ["model.embed_tokens.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    found = rename([*vicuna, "model.layers.0.input_layernorm.weight", "lm_head.weight"])
    assert found.kind.title == "Llama"
    assert found.dropped == (vicuna[1],)
    assert found.gives == {"language", "lm_head"}
    own = [*as_ours(hf_llava().state_dict()), "router.price"]
    found = rename([f"model.{n}" for n in own])
    assert list(found.ours.values()) == own


def test_unknown_and_duplicate_names_are_refused():
    with pytest.raises(ValueError, match=r"named a, b \.\.\.; known formats are DPN, .*ConvNeXt"):
        detect(["b", "a"])
    twice = ["model.layers.0.norm.weight", "mm_projector.0.weight", "x.mm_projector.0.weight"]
    with pytest.raises(ValueError, match=r"two tensors for the same weight: mm_projector.*, x\.mm"):
        rename(twice)
    names = [*as_original(hf_llava().state_dict()), "model.extra"]
    assert rename(names).unknown == ("model.extra",)
    assert len({kind.title for kind in FORMATS}) == len(FORMATS)
