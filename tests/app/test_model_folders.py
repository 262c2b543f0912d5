"""A LLaVA-1.5 folder of Hugging Face, as it is, at every command."""

import copy
import io
import json
import shutil
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from dpn import (
    DPNForConditionalGeneration,
    chat,
    checkpoints,
    inference,
    projectors,
    route,
    routers,
)
from dpn.common.errors import SettingError
from dpn.common.files import read_json, read_rows
from dpn.config import adopt, build, preflight
from dpn.config.compose import compose
from dpn.eval import evaluate
from dpn.generate import generate
from dpn.inference import evaluation
from dpn.inference.methods import replace_methods
from dpn.runs.request import ConfigError
from dpn.runs.saved import read_settings
from dpn.train import train
from tests.app.conftest import tiny_run, without_times
from tests.benchmarks import test_pope
from tests.checkpoints.conftest import LAYERS, VOCABULARY, WIDTH
from tests.checkpoints.folders import save_hf_llava, write_hf_llava, write_llava
from tests.talkers import make_run, picture

QUESTION = "What is this?"
#: Methods that need weights of their own.
LEARNED_ROUTERS = {name for name in routers.names() if routers.resolve(name).own_weights}
LEARNED_PROJECTORS = {n for n in projectors.names() if projectors.resolve(n).own_weights}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder that transformers saved."""
    folder = tmp_path_factory.mktemp("llava")
    save_hf_llava(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(llava):
    """Its model and processor, which no test changes."""
    return inference.load(llava, "cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files of square images, which Hugging Face does not crop and LLaVA does not pad."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        picture(number, 64, 64).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def from_llava(squares, tmp_path, llava):
    """Overrides of a run that starts from the folder, without any size."""
    common = tiny_run(squares, tmp_path / "outputs")
    rest = [o for o in common if not o.startswith(("model.text", "model.vision"))]
    return [*rest, "model.generation.max_new_tokens=6", f"init.model={llava}"]


def theirs(llava, images, number, prompt):
    """Model and inputs of Hugging Face for a prompt of ours."""
    model = LlavaForConditionalGeneration.from_pretrained(llava).eval()
    processor = AutoProcessor.from_pretrained(llava)
    image = Image.open(images / f"{number}.png")
    return model, processor(text=prompt, images=image, return_tensors="pt")


@torch.no_grad()
def test_logits_equal_those_of_hugging_face(llava, images):
    model, processor = inference.load(llava, "cpu")
    for number in range(3):
        image = Image.open(images / f"{number}.png")
        inputs = inference.inputs_of(processor, QUESTION, [image])
        prompt = processor.prompt([inference.question(QUESTION, [image])])
        hf, wanted = theirs(llava, images, number, prompt)
        mark = wanted["input_ids"] == VOCABULARY
        assert mark.sum() == 16
        assert torch.equal(
            wanted["input_ids"][~mark], inputs["input_ids"][inputs["input_ids"] != VOCABULARY]
        )
        torch.testing.assert_close(
            inputs["pixel_values"], wanted["pixel_values"], atol=2e-2, rtol=0
        )
        wanted["pixel_values"] = inputs["pixel_values"]
        want = hf(**wanted).logits[~mark][:, : VOCABULARY + 2]
        got = model(**inputs).logits[inputs["input_ids"] != VOCABULARY]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_it_is_the_model_that_convert_writes(llava, tmp_path):
    checkpoints.convert(llava, tmp_path / "ours")
    model, processor = inference.load(llava, "cpu")
    converted, known = inference.load(tmp_path / "ours", "cpu")
    want = converted.state_dict()
    assert model.state_dict().keys() == want.keys()
    assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict()["text_config"] == converted.config.to_dict()["text_config"]
    assert processor.to_dict() == known.to_dict()


def test_files_of_earlier_releases(tmp_path):
    """Other names of tensors, shards, a sentencepiece tokenizer, no processor."""
    want = write_hf_llava(tmp_path).state_dict()["model.language_model.norm.weight"]
    model, processor = inference.load(tmp_path, "cpu")
    assert torch.equal(model.language.norm.weight, want)
    assert inference.ask(model, processor, QUESTION, [picture()], 3)["base_rows"] == 4
    assert inference.ask(model, processor, QUESTION, [], 3)["base_rows"] == 0


def test_half_precision_is_kept(llava, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(llava, folder)
    LlavaForConditionalGeneration.from_pretrained(llava).half().save_pretrained(folder)
    model, _ = inference.load(folder, "cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@pytest.mark.slow
def test_answers_equal_those_of_hugging_face(llava, images):
    answers = []
    for number in range(3):
        file = images / f"{number}.png"
        found = generate(str(llava), QUESTION, str(file), max_new_tokens=12, device="cpu")
        _, processor = inference.load(llava, "cpu")
        prompt = processor.prompt([inference.question(QUESTION, [Image.open(file)])])
        hf, inputs = theirs(llava, images, number, prompt)
        # The image token, and entries of the table that belong to no token.
        never = [VOCABULARY, *range(VOCABULARY + 2, VOCABULARY + 24)]
        out = hf.generate(**inputs, max_new_tokens=12, do_sample=False, suppress_tokens=never)
        new = out[0, inputs["input_ids"].shape[1] :]
        assert found["answer"] == processor.decode(new)
        answers.append(found["answer"])
    assert len(set(answers)) > 1
    assert all(answers)


def test_route_and_chat(llava, images, tmp_path, monkeypatch, capsys):
    want = generate(str(llava), QUESTION, str(images / "0.png"), max_new_tokens=6)["answer"]
    (found,) = route.route(str(llava), str(images / "0.png"), QUESTION, max_new_tokens=6)
    assert found.answer == want
    arguments = [f"run={llava}", f"image={images / '0.png'}", "max_new_tokens=6"]
    monkeypatch.setattr(sys, "argv", ["chat", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
    chat.main()
    assert want in capsys.readouterr().out


def test_a_benchmark(llava, tmp_path):
    test_pope.make(tmp_path / "files")
    overrides = [f"run={llava}", "benchmarks=[pope]", f"data_root={tmp_path / 'files'}"]
    overrides += [f"paths.output_root={tmp_path}", "max_new_tokens=3", "overlays=0"]
    folder = evaluate(compose("eval", overrides))
    model, processor = inference.load(llava, "cpu")
    files = sorted((tmp_path / "files" / "pope" / "val2014").iterdir())
    rows = read_rows(folder / "rows.jsonl")
    for row, file in zip(rows, files, strict=True):
        found = inference.ask(model, processor, row["prompt"], [Image.open(file)], 3)
        assert found["answer"] == row["answer"]
    assert "pope/f1" in read_json(folder / "metrics.json")


@pytest.mark.slow
def test_a_method_on_top_of_the_folder(llava, images, tmp_path, monkeypatch, capsys):
    arguments = (str(llava), QUESTION, str(images / "0.png"), 6)
    plain = generate(*arguments)
    assert without_times([generate(*arguments, router="none")]) == without_times([plain])
    found = generate(*arguments, router="fastv", keep=0.5)
    assert found["rows"][0] == plain["rows"][0] > found["rows"][-1]
    (drawn,) = route.route(*arguments[::2], QUESTION, max_new_tokens=6, router="fastv", keep=0.5)
    assert drawn.answer == found["answer"]
    command = [f"run={llava}", f"image={images / '0.png'}", "max_new_tokens=6"]
    monkeypatch.setattr(sys, "argv", ["chat", *command, "router=fastv", "keep=0.5"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
    chat.main()
    printed = capsys.readouterr().out
    assert found["answer"] in printed
    assert f"{found['visual_macs_ratio']:.3f} of the visual MACs" in printed
    pooled = generate(*arguments, projector="pooled", keep=0.25)
    assert pooled["rows"][0] == plain["rows"][0] // 4
    assert generate(*arguments, router="none", projector="pooled", keep=0.25)["rows"][0] == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"router": "dpe", "keep": 0.5},
            "`router=dpe` has weights of its own.*stage=gates.*init",
        ),
        ({"router": "depth_routing", "keep": 0.5}, "weights of its own.*stage=gates"),
        ({"projector": "token_packer"}, "`projector=token_packer` has weights of.*stage=finetune"),
        ({"projector": "dense_connector"}, "weights of its own.*stage=finetune"),
        ({"projector": "dfmr", "keep": 0.5}, "found on training data.*stage=apply projector=dfmr"),
        ({"keep": 0.5}, "`keep=0.5` cannot be met with router=none of .*; name a method"),
        ({"router": "chain", "keep": 0.5}, "cannot be met with router=chain, which"),
        ({"router": "fastv", "keep": 0.01}, "router.keep=0.01 cannot be reached"),
        ({"router": "head_pruning"}, "router.scores is null"),
        ({"router": "fastvv"}, "no router named 'fastvv'"),
    ],
)
def test_a_method_that_cannot_be_put_on_top(arguments, sentence, llava, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_model", None)  # refused before weights are read
    with pytest.raises(SettingError, match=sentence):
        inference.load(llava, "cpu", **arguments)


@torch.no_grad()
def assert_it_is_the_model_of_its_config(model, inputs):
    want = DPNForConditionalGeneration(model.config).eval()
    want.load_state_dict(model.state_dict())
    assert torch.equal(model(**inputs).logits, want(**inputs).logits)


@pytest.mark.parametrize("name", sorted({*projectors.names()} - LEARNED_PROJECTORS))
def test_projectors_on_top_keep_the_weights(name, loaded):
    model = copy.deepcopy(loaded[0])
    replace_methods(model, "folder", projector=name)
    assert model.config.projector_config["name"] == name
    for key, weight in loaded[0].named_parameters():
        assert torch.equal(weight, model.get_parameter(key))
    inputs = inference.inputs_of(loaded[1], QUESTION, [picture(0, 64, 64)])
    assert_it_is_the_model_of_its_config(model, inputs)


@pytest.mark.parametrize("name", sorted({*routers.names()} - LEARNED_ROUTERS - {"head_pruning"}))
def test_routers_on_top(name, loaded):
    model = copy.deepcopy(loaded[0])
    state = torch.get_rng_state()
    replace_methods(model, "folder", router=name)
    assert torch.equal(state, torch.get_rng_state())
    assert model.config.router_config["name"] == name
    inputs = inference.inputs_of(loaded[1], QUESTION, [picture(0, 64, 64)])
    assert_it_is_the_model_of_its_config(model, inputs)


@pytest.mark.parametrize("name", ["fastv", "sparsevlm", "static", "aim", "yopo"])
def test_arguments_on_top_are_those_of_apply(name, llava, loaded, from_llava):
    model = copy.deepcopy(loaded[0])
    replace_methods(model, llava, router=name, keep=0.7)
    words = ["stage=apply", f"router={name}", "router.keep=0.7"]
    config = build.model_config(compose("train", [*from_llava, *words]).config)
    default = {"min_rows": model.config.router_config.get("min_rows")}
    assert {**config.router_config, **default} == {**model.config.router_config, **default}


def test_the_own_method_keeps_its_settings(llava, tmp_path):
    model, processor = inference.load(llava, "cpu", router={"name": "fastv", "k": 1, "ratio": 0.5})
    inference.save(model, processor, tmp_path / "fastv")
    same, _ = inference.load(tmp_path / "fastv", "cpu", router="fastv")
    assert same.config.router_config == model.config.router_config
    other, _ = inference.load(tmp_path / "fastv", "cpu", keep=0.5)
    assert other.config.router_config == {**model.config.router_config, "keep": 0.5}
    assert (other.router.k, other.router.keep) == (1, 0.5)
    none, _ = inference.load(tmp_path / "fastv", "cpu", router="none")
    inputs = inference.inputs_of(processor, QUESTION, [picture(0, 64, 64)])
    plain, _ = inference.load(llava, "cpu")
    assert torch.equal(none(**inputs).logits, plain(**inputs).logits)


def test_own_gates_are_kept(tmp_path):
    folder = make_run(tmp_path, {"name": "dpe", "layers": [0, 2], "min_rows": 1})
    model, processor = inference.load(folder, "cpu")
    inputs = inference.inputs_of(processor, QUESTION, [picture()])
    own, _ = inference.load(folder, "cpu", router="dpe")
    assert torch.equal(own(**inputs).logits, model(**inputs).logits)
    for change in ({"keep": 0.5}, {"router": "dpe", "keep": 0.5}):
        with pytest.raises(SettingError, match=r"`router=dpe` meets keep=0\.5 .*stage=apply"):
            inference.load(folder, "cpu", **change)
    cooler, _ = inference.load(folder, "cpu", router={"name": "dpe", "temperature": 3.0})
    for key, weight in cooler.router.named_parameters():
        assert torch.equal(weight, model.router.get_parameter(key))
    assert cooler.config.router_config["layers"] == [0, 2]
    fixed, _ = inference.load(folder, "cpu", router="random")
    assert fixed.config.router_config["min_rows"] == 1  # of the folder
    with pytest.raises(SettingError, match="weights of its own"):
        inference.load(folder, "cpu", router="dyvte")


@pytest.mark.slow
def test_an_evaluation_with_a_method_on_top(llava, tmp_path):
    test_pope.make(tmp_path / "files")
    overrides = [f"run={llava}", "benchmarks=[pope]", f"data_root={tmp_path / 'files'}"]
    overrides += [f"paths.output_root={tmp_path}", "max_new_tokens=3", "overlays=0"]
    plain = evaluate(compose("eval", overrides))
    folder = evaluate(compose("eval", [*overrides, "router=fastv", "router.k=1", "keep=0.5"]))
    other = evaluate(compose("eval", [*overrides, "router=fastv", "keep=0.7"]))
    assert len({plain, folder, other}) == 3
    method = "router=fastv router.k=1 keep=0.5"
    assert {row["method"] for row in read_rows(folder / "rows.jsonl")} == {method}
    assert f"Method: `{method}`" in (folder / "report.md").read_text()
    assert method in (folder / "pope" / "answers.jsonl").read_text()
    assert not any("method" in row for row in read_rows(plain / "rows.jsonl"))
    journals = [{p.name for p in (f / "journal").iterdir()} for f in (plain, folder, other)]
    assert not journals[0] & journals[1]
    assert not journals[1] & journals[2]
    model, processor = inference.load(llava, "cpu", router={"name": "fastv", "k": 1}, keep=0.5)
    files = sorted((tmp_path / "files" / "pope" / "val2014").iterdir())
    for row, file in zip(read_rows(folder / "rows.jsonl"), files, strict=True):
        found = inference.ask(model, processor, row["prompt"], [Image.open(file)], 3)
        assert (found["answer"], found["rows"]) == (row["answer"], row["rows"])


def test_arguments_of_a_method_of_an_evaluation_are_checked(llava):
    for words, sentence in {
        ("router=fastv", "+router.kk=1"): "`router.kk` is not a setting",
        ("router=fastv", "router.k=deep"): "`router.k=deep` has the wrong type",
        ("keep=1.5",): "`keep=1.5` is not possible",
        ("router=dpe",): "`router=dpe` has weights of its own",
        ("router=none", "keep=0.5"): "`keep=0.5` cannot be met with router=none",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            preflight.check_evaluation(compose("eval", [f"run={llava}", "data=mosaic", *words]))
    chain = compose("eval", [f"run={llava}", "router=chain", "router.routers.0.ratio=0.75"])
    assert chain.config.router.routers[0].ratio == 0.75


@pytest.mark.slow
def test_a_method_is_applied_to_it(llava, from_llava):
    folder = train(
        compose("train", [*from_llava, "stage=apply", "router=fastv", "router.keep=0.5"])
    )
    model, processor = inference.load(llava, "cpu")
    model.config.router_config = {"name": "fastv", "keep": 0.5}
    model.router = DPNForConditionalGeneration(model.config).router
    config = compose("train", from_llava).config
    source = build.data_module(config.data)
    source.processor = processor
    metrics, rows = evaluation.evaluate_held_out(model, processor, source, 6)
    top, _ = inference.load(llava, "cpu", router="fastv", keep=0.5)
    assert top.config.router_config == read_settings(folder, ["router"]).router
    _, same = evaluation.evaluate_held_out(top, processor, source, 6)
    assert [(r["answer"], r["rows"]) for r in same] == [(r["answer"], r["rows"]) for r in rows]
    assert metrics["cost/visual_macs_ratio"] == pytest.approx(0.5, abs=0.1)
    found = read_rows(folder / "rows.jsonl")
    assert [(r["answer"], r["rows"]) for r in found] == [(r["answer"], r["rows"]) for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["finetune", "gates"])
def test_training_starts_from_it(stage, llava, from_llava):
    request = compose("train", [*from_llava, "router=dpe", "router.keep=null", f"stage={stage}"])
    folder = train(request)
    model, processor = inference.load(folder, "cpu")
    before, _ = inference.load(llava, "cpu")
    assert processor.router_token_id == VOCABULARY + 2  # the gates read it
    assert processor.template == "v1"
    name = "layers.0.self_attn.q_proj.weight"
    kept = torch.equal(
        before.language.state_dict()[name], model.language.state_dict()[name].float()
    )
    assert kept == (stage == "gates")
    for one, other in zip(before.vision.parameters(), model.vision.parameters(), strict=True):
        assert torch.equal(one, other.to(one.dtype))


def test_sizes_come_from_the_folder(llava, from_llava):
    config = compose("train", from_llava).config
    assert config.model.text.hidden_size == WIDTH
    assert config.model.text.num_hidden_layers == LAYERS
    assert config.model.vision == {
        **{"name": "clip", "image_size": 56, "patch_size": 14, "width": 24, "depth": 4},
        **{"heads": 2, "ffn_size": 40, "select_layer": -2},
    }
    assert config.model.processor.template == "v1"
    assert config.model.processor.router_token  # router=dpe reads it
    plain = compose("train", [*from_llava, "router=fastv"]).config
    assert not plain.model.processor.router_token
    chain = ["router=chain", "router.routers=[{name: vtw}, {name: dpe}]"]
    assert compose("train", [*from_llava, *chain]).config.model.processor.router_token
    other = compose("train", [*from_llava, "model.vision.image_size=84"]).config
    assert other.model.vision.image_size == 84
    assert other.model.vision.width == 24


def test_no_published_weights_are_loaded_over_it(llava, squares):
    overrides = ["model=llava_1_5_7b", "data=llava_json", f"init.model={llava}"]
    assert set(compose("train", overrides).config.init.values()) == {None, str(llava)}
    overrides.append("init.projector=mine")
    assert compose("train", overrides).config.init.projector == "mine"


@pytest.mark.slow
def test_a_run_of_the_composed_model_changes_nothing(finished, tiny):
    config = compose("train", tiny).config
    same = compose("train", [*tiny, f"init.model={finished}"]).config
    assert same.model == config.model


@pytest.mark.slow
def test_a_run_of_another_model_gives_its_sizes(finished, squares, tmp_path):
    common = tiny_run(squares, tmp_path)
    rest = [o for o in common if not o.startswith(("model.text", "model.vision"))]
    config = compose(
        "train", [*rest, f"init.model={finished}", "stage=apply", "router=none"]
    ).config
    assert (config.model.text.hidden_size, config.model.vision.width) == (16, 16)
    assert config.model.processor.template == "short"


def changed(llava, folder, **values):
    """A copy of the folder with other values in its config."""
    shutil.copytree(llava, folder)
    config = read_json(folder / "config.json")
    for key, value in values.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


SIGLIP = {"model_type": "siglip_vision_model"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "qwen2_5_vl"}, "a model of type `qwen2_5_vl`, which is not supported"),
        ({"vision_config": SIGLIP}, "vision_config.model_type='siglip_vision_model'"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ({"quantization_config": {"load_in_4bit": True}}, "holds quantised weights"),
        ({"vision_feature_layer": [-2, -5]}, "only a single layer is supported"),
        ({"text_config": None}, "config.json"),
        ({"text_config": {"hidden_size": "wide"}}, "config.json"),
        ({"text_config": {"intermediate_size": 50}}, "does not fit the model"),
        ({"text_config": {"num_hidden_layers": 5}}, "lacks required weights, language"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(change, sentence, llava, from_llava, tmp_path):
    folder = changed(llava, tmp_path / "other", **change)
    overrides = [o for o in from_llava if not o.startswith("init.model")]
    request = compose("train", [*overrides, f"init.model={folder}", "stage=apply", "router=none"])
    with pytest.raises(ConfigError) as caught:
        preflight.check(request)
    (problem,) = caught.value.problems
    assert f"`init.model={folder}` cannot be used: " in problem
    assert sentence in problem
    with pytest.raises(checkpoints.FolderError, match=str(folder)):
        inference.load(folder, "cpu")


def damage(folder, name):
    if name == "shard":
        (folder / "model.safetensors").write_bytes(b"\0" * 20)
    elif name == "weights":
        (folder / "model.safetensors").unlink()
    elif name == "template":
        (folder / "chat_template.jinja").write_text("<|im_start|>{{ messages }}")
    elif name == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif name == "words":
        (folder / "tokenizer.json").write_text("{")
    elif name == "bos":
        settings = read_json(folder / "tokenizer_config.json") | {"bos_token": None}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        (folder / "config.json").write_text('{"model_type": ')


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("shard", "is damaged or incomplete"),
        ("weights", "holds no weights"),
        ("template", "has a chat template that is not LLaVA-1.5's"),
        ("config", "other/config.json"),
        ("tokenizer", "holds no tokenizer"),
        ("words", "The tokenizer of .* cannot be read"),
        ("bos", "needs a tokenizer with BOS and EOS"),
    ],
)
def test_damaged_folders(name, sentence, llava, from_llava, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(llava, folder)
    damage(folder, name)
    overrides = [o for o in from_llava if not o.startswith("init.model")]
    request = compose("train", [*overrides, f"init.model={folder}", "router=fastv"])
    with pytest.raises(ConfigError, match=sentence) as caught:
        preflight.check(request)
    assert str(folder) in str(caught.value)
    with pytest.raises(checkpoints.FolderError, match=sentence):
        inference.load(folder, "cpu")


def test_an_original_folder_needs_its_tower(tmp_path, images):
    write_llava(tmp_path / "whole")
    model, processor = inference.load(tmp_path / "whole", "cpu")
    assert inference.ask(model, processor, QUESTION, [picture()], 3)["base_rows"] == 4
    write_llava(tmp_path / "bare", tower=False)
    with pytest.raises(
        checkpoints.FolderError, match=r"no vision tower; .*tools/convert.py .*--part"
    ):
        inference.load(tmp_path / "bare", "cpu")


def test_what_needs_training_is_refused_before_anything_is_loaded(from_llava):
    for part in ("router=dpe", "projector=token_packer"):
        with pytest.raises(ConfigError, match=rf"lacks required weights, {part.partition('=')[0]}"):
            preflight.check(compose("train", [*from_llava, "stage=apply", "router=none", part]))


def test_problems_are_none_without_a_folder(tiny):
    assert adopt.problems(compose("train", tiny).config) == []


def test_a_hub_id(llava, from_llava, monkeypatch):
    """The folder is downloaded: its small files when a config is composed, the weights later."""
    from dpn.common import hub

    asked = []

    def download(name, allow_patterns):
        asked.append((name, "*.safetensors" in allow_patterns))
        return str(llava)

    monkeypatch.setattr(hub, "_ask_hub", lambda name: "yes")
    monkeypatch.setattr(hub, "snapshot_download", download)
    overrides = [o for o in from_llava if not o.startswith("init.model")]
    request = compose("train", [*overrides, "init.model=llava-hf/tiny", "router=fastv"])
    assert request.config.model.text.hidden_size == WIDTH
    assert asked == [("llava-hf/tiny", False)]
    preflight.check(request)
    assert asked[-1] == ("llava-hf/tiny", True)
    model, _ = inference.load("llava-hf/tiny", "cpu")
    assert model.config.text_config.hidden_size == WIDTH
    preflight.check_evaluation(compose("eval", ["run=llava-hf/tiny", "benchmarks=[pope]"]))
