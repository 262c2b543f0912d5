"""`dpn.verify`: mistakes in settings, models, processors and pictures get a sentence."""

import json
import shutil
from importlib.util import find_spec

import pytest
from safetensors.torch import load_file, save_file

from dpn import verify as door
from dpn.common.errors import FileError, SettingError
from dpn.config.compose import compose
from dpn.data.image_rules import ImageError
from dpn.inference import stock
from dpn.runs.request import ConfigError
from tests.vlm_folders import save


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """Folder of a tiny model with its processor."""
    return save(tmp_path_factory.mktemp("models") / "llava", "llava")


def overrides(folder, *more):
    return ["model=hf", f"model.id={folder}", "router.k=1", "new_tokens=4", "pairs=0", *more]


def asked(*arguments):
    return door.verify(compose("verify", list(arguments)))


def test_mistakes_in_settings_come_in_one_error(tmp_path):
    with pytest.raises(ConfigError) as caught:
        asked(
            *("model.id=/no/where", "image=/no", "keep=2", "+router.kk=1", "model.dtype=int8"),
            *("new_tokens=0", "pairs=-1"),
        )
    found = caught.value.problems
    for sentence in (
        "`model.id=/no/where` does not exist; give a model folder or a Hub id.",
        "`image=/no` is not a file",
        "`keep=2` is not possible",
        "`router.kk` is not a setting; did you mean `k`?",
        "`model.dtype=int8` has the wrong type; expected one of `float32`",
        "`new_tokens=0` is not possible",
        "`pairs=-1` is not possible",
    ):
        assert sum(sentence in problem for problem in found) == 1, sentence
    assert len(found) == 7
    with pytest.raises(ConfigError, match=r"`model\.id` has no value yet"):
        asked()
    with pytest.raises(ConfigError, match=r"use model=hf model\.id=FOLDER_OR_HUB_ID"):
        asked("model=tiny")


@pytest.mark.parametrize("name", ["train", "bench", "plan"])
def test_other_commands_do_not_take_a_stock_model(name):
    with pytest.raises(ConfigError, match=rf"dpn.verify only; dpn.{name} takes others"):
        compose(name, ["model=hf", "model.id=a/b"])


@pytest.mark.parametrize(
    ("router", "sentence"),
    [
        ("router=dpe", "router=dpe has weights that must be trained"),
        ("router.k=7", "before layers"),
        ("keep=0.01", "cannot be reached"),
    ],
)
def test_impossible_methods_are_refused_before_weights_are_loaded(
    llava, monkeypatch, router, sentence
):
    monkeypatch.setattr(stock, "load_stock", lambda **_: pytest.fail("weights were loaded"))
    line = [x for x in overrides(llava) if not x.startswith("router") or router != x]
    if router.startswith("router="):
        line = [x for x in line if x != "router.k=1"]
    with pytest.raises(SettingError, match=sentence):
        asked(*line, router)


def test_pictures_that_cannot_be_read_are_refused(llava, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(ImageError, match="is corrupt"):
        asked(*overrides(llava, f"image={tmp_path / 'broken.png'}"))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "gemma3"}, "attends in both directions"),
        ({"model_type": "internvl_chat"}, "name ends with -hf"),
        ({"model_type": "gpt2"}, r"does not support models of type 'gpt2'.*dpn\.verify"),
        ({}, "does not support models of type None"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_models_of_other_types_are_refused(tmp_path, config, sentence):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match=sentence):
        asked(*overrides(tmp_path))


def test_folders_without_a_model_are_refused(llava, tmp_path):
    with pytest.raises(FileError, match=r"there is no config\.json"):
        asked(*overrides(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileError, match="is not valid JSON"):
        asked(*overrides(tmp_path))
    shutil.copytree(llava, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(FileError, match="cannot be loaded"):
        asked(*overrides(tmp_path / "cut"))


def test_missing_weights_are_refused(llava, tmp_path):
    shutil.copytree(llava, tmp_path / "part")
    file = tmp_path / "part" / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "layers.1.mlp.up_proj" in name))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(FileError, match=r"lacks 1 weights .*mlp\.up_proj"):
        asked(*overrides(tmp_path / "part"))


def test_a_processor_that_cannot_be_loaded_says_what_to_do(llava, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    shutil.copytree(llava, bare)
    (bare / "processor_config.json").unlink()
    with pytest.raises(SettingError, match=r"holds no processor .*save_pretrained\(FOLDER\)"):
        asked(*overrides(bare))
    plain = tmp_path / "plain"
    shutil.copytree(llava, plain)
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(SettingError, match="has no chat template"):
        asked(*overrides(plain))

    shutil.copytree(llava, tmp_path / "qwen")
    (tmp_path / "qwen" / "processor_config.json").unlink()
    named = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    (tmp_path / "qwen" / "preprocessor_config.json").write_text(json.dumps(named))
    if find_spec("torchvision") is None:  # its processor reads videos, too
        with pytest.raises(SettingError, match=r"needs: pip install torchvision\."):
            stock.load_processor(str(tmp_path / "qwen"))

    def missing(*_, **options):
        raise ImportError("Package `num2words` is required")

    monkeypatch.setattr(stock.AutoProcessor, "from_pretrained", missing)
    monkeypatch.setattr(stock, "find_spec", lambda name: None if name == "num2words" else name)
    with pytest.raises(SettingError, match=r"num2words` is required.*: pip install num2words\."):
        asked(*overrides(llava))
