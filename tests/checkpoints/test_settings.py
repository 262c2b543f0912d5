import json

import pytest

from dpn.checkpoints.settings import read_settings
from tests.checkpoints.conftest import clip_config, hf_llava

#: As in the released config.json files.
LLAVA_13B = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "tune_mm_mlp_adapter": False,
    "use_mm_proj": True,
}
HR = LLAVA_13B | {
    "input_image_size": 1024,
    "is_multipath_encoder": True,
    "vision_tower_slow": "convnext_xxlarge.clip_laion2b_soup",
    "freeze_vision": False,
    "delay_load": False,
    "image_grid_pinpoints": None,
}
KERNELS = [[1, 1], [1, 2], [2, 2]]
POOLING = {
    "pooling_type": "adaptive",
    "pooling_layers": [
        {"index": i, "kernel_size": KERNELS, "stride": KERNELS} for i in (7, 15, 23)
    ],
    "pooling_function": "max",
    "pooling_location": "post",
    "prepooling": False,
    "use_special_token": True,
    "detach_cls_token_to_predict": False,
    "router_version": "v1",
}
DPE = {
    "name": "dpe",
    "layers": [7, 15, 23],
    "kernels": [KERNELS] * 3,
    "reduce": "max",
    "where": "post",
    "min_rows": "reference",
    "gate": "mlp",
    "token": "router",
    "detach": False,
}


def settings(folder, config, shapes=(), clip_folders=()):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return read_settings(folder, dict(shapes), clip_folders)


def test_llava(tmp_path):
    got = settings(tmp_path, LLAVA_13B)
    assert got.vision == {"name": "clip", "select_layer": -2}
    assert got.projector == {"name": "mlp", "depth": 2}
    assert got.router == {"name": "none"}
    assert got.text["num_hidden_layers"] == 40
    assert got.text["intermediate_size"] == 13824
    assert not {"mm_hidden_size", "torch_dtype", "architectures"} & set(got.text)
    assert got.processor == {
        "template": "v1",
        "image_mode": "pad",
        "image_size": 336,
        "patch_size": 14,
        "router_token": False,
        "tokenization": "tokenizer",
    }
    linear = {k: v for k, v in LLAVA_13B.items() if k != "mm_projector_type"}
    assert settings(tmp_path, linear).projector["depth"] == 1


def test_llava_hr(tmp_path):
    got = settings(tmp_path, HR)
    assert got.vision == {
        "name": "clip_convnext",
        "image_size": 1024,
        "slow_depths": [3, 4, 30, 3],
        "slow_dims": [384, 768, 1536, 3072],
        "slow_eps": 1e-5,
    }
    assert (got.processor["image_size"], got.processor["patch_size"]) == (1024, 32)
    seven = settings(tmp_path, HR | {"vision_tower_slow": "convnext_large_mlp.clip_laion2b_ft_320"})
    assert seven.vision["slow_depths"] == [3, 3, 27, 3]
    assert seven.vision["slow_eps"] == 1e-6
    block = "vision.slow.encoder.stages.{}.layers.{}.layer_scale_parameter"
    shapes = {block.format(s, b): (2**s,) for s in range(4) for b in range(11 if s == 2 else 1)}
    tiny = settings(tmp_path, HR, shapes).vision
    assert (tiny["slow_depths"], tiny["slow_dims"]) == ([1, 1, 11, 1], [1, 2, 4, 8])
    single = settings(tmp_path, HR | {"is_multipath_encoder": False, "input_image_size": 448})
    assert single.vision == {"name": "clip", "select_layer": -2, "image_size": 448}


def test_the_sizes_of_clip_from_its_folder(tmp_path):
    clip = tmp_path / "clip"
    clip.mkdir()
    text = clip_config().to_dict()
    sizes = {"image_size": 28, "patch_size": 14, "width": 24, "depth": 4, "heads": 2}
    for config in (text, {"model_type": "clip", "vision_config": text, "text_config": {}}):
        (clip / "config.json").write_text(json.dumps(config))
        for named, given in ((str(clip), ()), ("my-clip", (clip,))):
            got = settings(tmp_path, HR | {"mm_vision_tower": named}, (), given).vision
            wanted = {"fast_image_size": 28, "fast_patch_size": 14, "image_size": 1024}
            assert got.items() >= (sizes | wanted | {"ffn_size": 40}).items() - {
                ("image_size", 28),
                ("patch_size", 14),
            }
            got = settings(tmp_path, LLAVA_13B | {"mm_vision_tower": named}, (), given).vision
            assert got == {"name": "clip", "select_layer": -2, "ffn_size": 40, **sizes}
    with pytest.raises(ValueError, match="the vision tower my-clip, whose sizes are unknown"):
        settings(tmp_path, LLAVA_13B | {"mm_vision_tower": "my-clip"})


def test_dpn(tmp_path):
    got = settings(tmp_path, HR | {"pooling": POOLING})
    assert got.router == DPE
    assert got.processor["router_token"]
    assert got.processor["tokenization"] == "transformers-4.31"
    v2 = POOLING | {"router_version": "v2", "use_special_token": False, "pooling_function": "conv"}
    got = settings(tmp_path, HR | {"pooling": v2})
    assert got.router == DPE | {"gate": "linear", "token": "last", "reduce": "conv"}
    assert not got.processor["router_token"]
    old = {k: POOLING[k] for k in ("pooling_type", "pooling_layers", "use_special_token")}
    assert settings(tmp_path, LLAVA_13B | {"pooling": old}).router == DPE
    fixed = {
        "pooling_type": "static",
        "pooling_layers": [
            {"index": 15, "kernel_size": [2, 2], "stride": [2, 2]},
            {"index": 7, "kernel_size": [1, 2], "stride": [1, 2]},
        ],
        "pooling_function": "avg",
        "pooling_location": "pre",
    }
    assert settings(tmp_path, LLAVA_13B | {"pooling": fixed}).router == {
        "name": "static",
        "layers": [7, 15],
        "kernels": [[1, 2], [2, 2]],
        "reduce": "avg",
        "where": "pre",
    }
    drawn = settings(tmp_path, HR | {"pooling": POOLING | {"pooling_type": "random"}}).router
    assert drawn == {k: DPE[k] for k in ("layers", "kernels", "reduce", "where", "min_rows")} | {
        "name": "random"
    }


def test_hugging_face(tmp_path):
    config = hf_llava().config.to_dict()
    got = settings(tmp_path, config)
    assert got.vision == {
        "name": "clip",
        "image_size": 28,
        "patch_size": 14,
        "width": 24,
        "depth": 4,
        "heads": 2,
        "ffn_size": 40,
        "select_layer": -2,
    }
    assert got.text["model_type"] == "llama"
    assert (got.router, got.processor["image_mode"]) == ({"name": "none"}, "pad")
    # Released files leave out what is a default.
    tower = {"model_type": "clip_vision_model", "patch_size": 16, "num_hidden_layers": 3}
    short = settings(tmp_path, {"text_config": {"model_type": "llama"}, "vision_config": tower})
    assert short.vision["heads"] == 12  # CLIPVisionConfig's default
    assert short.text == {"model_type": "llama"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end or mm_use_im_patch_token, which are"),
        ({"mm_vision_select_feature": "cls_patch"}, "='cls_patch'; supported: 'patch'"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type='resampler'; use linear"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio='anyres'; supported: 'pad'"),
        ({"vision_tower_slow": "resnet50"}, "vision_tower_slow='resnet50'; supported: 'convnext"),
        ({"pooling": POOLING | {"prepooling": True}}, "pooling.prepooling=True"),
        ({"pooling": POOLING | {"pooling_type": "x"}}, "='x'; supported: 'static', 'adaptive'"),
        ({"pooling": POOLING | {"router_version": "v3"}}, "='v3'; supported: 'v1', 'v2'"),
        ({"pooling": {"pooling_type": "adaptive"}}, "config.json lacks 'pooling_layers'"),
        (
            {"pooling": POOLING | {"pooling_type": "static", "pooling_function": "conv"}},
            "pooling.pooling_function='conv'; supported: 'max', 'avg'",
        ),
        (
            {
                "pooling": {
                    "pooling_type": "static",
                    "pooling_layers": [{"index": 7, "kernel_size": [2, 2], "stride": [1, 1]}],
                }
            },
            r"pools at layer 7 with stride \[1, 1\] and kernel \[2, 2\]",
        ),
    ],
)
def test_unsupported_settings_are_refused(change, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        settings(tmp_path, HR | change)


def test_other_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        read_settings(tmp_path, {})
    with pytest.raises(ValueError, match="it has neither mm_vision_tower"):
        settings(tmp_path, {"model_type": "llama"})
    wrong = hf_llava().config.to_dict()
    for key, value in (
        ("vision_feature_select_strategy", "full"),
        ("projector_hidden_act", "relu"),
        ("multimodal_projector_bias", False),
        ("vision_feature_layer", [-2, -1]),
        ("vision_config", {"model_type": "siglip_vision_model"}),
    ):
        with pytest.raises(ValueError, match=key):
            settings(tmp_path, wrong | {key: value})
    other = clip_config().to_dict() | {"hidden_act": "gelu"}
    with pytest.raises(ValueError, match=r"vision_config\.hidden_act='gelu'; supported: 'quick_g"):
        settings(tmp_path, wrong | {"vision_config": other})
