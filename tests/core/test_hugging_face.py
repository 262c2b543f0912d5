"""Hugging Face's Auto classes and pipeline on a saved folder."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

from dpn import DPNConfig, DPNForConditionalGeneration, DPNProcessor, inference
from tests.talkers import make_talker, picture

NEW = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = make_talker({"name": "dpe", "layers": [0, 2], "min_rows": 1})
    folder = tmp_path_factory.mktemp("saved")
    inference.save(model, processor, folder)
    for number in range(2):
        picture(number).save(folder / f"{number}.png")
    return folder


def about(image, text):
    return [
        {"role": "user", "content": [{"type": "image", **image}, {"type": "text", "text": text}]}
    ]


def test_auto_classes_load_our_classes(folder):
    assert type(AutoConfig.from_pretrained(folder)) is DPNConfig
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model) is DPNForConditionalGeneration
    own = DPNForConditionalGeneration.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is DPNProcessor
    assert processor.to_dict() == DPNProcessor.from_pretrained(folder).to_dict()
    empty = AutoModelForImageTextToText.from_config(model.config)
    assert type(empty) is DPNForConditionalGeneration


@pytest.mark.parametrize("given", ["folder", "objects"])
def test_pipeline_answers_equal_our_own(given, folder):
    model, processor = inference.load(folder, "cpu")
    objects = {"model": model, "processor": processor}
    made = {"model": str(folder)} if given == "folder" else objects
    pipe = pipeline("image-text-to-text", device="cpu", **made)
    questions = ["What colour is the cat?", "How many birds?"]
    answers = [
        inference.ask(model, processor, question, [picture(number)], NEW)["answer"]
        for number, question in enumerate(questions)
    ]
    assert answers[0] != answers[1]
    chats = [about({"url": str(folder / f"{n}.png")}, q) for n, q in enumerate(questions)]
    found = pipe(text=chats, max_new_tokens=NEW, return_full_text=False)
    assert [one[0]["generated_text"].strip() for one in found] == answers
    chat = about({"image": picture(0)}, questions[0])
    (found,) = pipe(text=chat, max_new_tokens=NEW)
    assert found["generated_text"][:-1] == chat
    assert found["generated_text"][-1]["content"].strip() == answers[0]


def test_pipeline_without_chat(folder):
    model, processor = inference.load(folder, "cpu")
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    prompt = processor.prompt([inference.question("What?", [picture()])])
    found = pipe(images=picture(), text=prompt, max_new_tokens=NEW, return_full_text=False)
    want = inference.ask(model, processor, "What?", [picture()], NEW)["answer"]
    assert found[0]["generated_text"].strip() == want


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    for name in ("processor_config.json", "config.json"):
        settings = json.loads((folder / name).read_text())
        autos = dict.fromkeys(("AutoProcessor", "AutoConfig"), "evil.Evil")
        (tmp_path / name).write_text(json.dumps(settings | {"auto_map": autos}))
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    assert type(AutoConfig.from_pretrained(tmp_path)) is DPNConfig
    with pytest.raises(ValueError, match="unknown settings auto_map"):
        AutoProcessor.from_pretrained(tmp_path)


def test_videos_are_refused(folder):
    with pytest.raises(ValueError, match="leave out videos and audio"):
        DPNProcessor.from_pretrained(folder)(text="Hi", videos=[1])


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bare_import_stays_light():
    code = "import sys, dpn; print(*({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    assert python(code) == []


AUTO = "from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import dpn\n" + AUTO,
        AUTO + "import dpn\n",
        "from transformers import AutoConfig\nimport dpn\n" + AUTO,
        "import dpn.model\n" + AUTO,
        "import dpn, transformers.models.llama.modeling_llama\n" + AUTO,
    ],
)
def test_imports_of_any_order(imports, folder):
    code = f"{imports}for auto in (AutoConfig, AutoModelForImageTextToText, AutoProcessor):\n"
    code += f"    print(type(auto.from_pretrained({str(folder)!r})).__name__)"
    assert python(code) == ["DPNConfig", "DPNForConditionalGeneration", "DPNProcessor"]


def test_pipeline_answers_batches_of_chats_with_pictures(folder, tmp_path):
    model, processor = inference.load(folder, "cpu")
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    questions = ["What colour is the cat?", "How many?", "What is it, then?"]
    chats = [about({"image": picture(number)}, q) for number, q in enumerate(questions)]
    options = {"max_new_tokens": NEW, "return_full_text": False}
    alone = [pipe(text=chat, **options)[0]["generated_text"] for chat in chats]
    together = pipe(text=chats, batch_size=2, **options)
    assert [one[0]["generated_text"] for one in together] == alone
    assert len(set(alone)) > 1
    pipe.save_pretrained(tmp_path)
    assert DPNProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_pipeline_answers_lists_of_prompts_with_pictures(folder):
    model, processor = inference.load(folder, "cpu")
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    pictures = [picture(number) for number in range(2)]
    prompts = [processor.prompt([inference.question(q, pictures[:1])]) for q in ("What?", "Why?")]
    options = {"max_new_tokens": NEW, "return_full_text": False}
    alone = [
        pipe(images=image, text=prompt, **options)[0]["generated_text"]
        for image, prompt in zip(pictures, prompts, strict=True)
    ]
    together = pipe(images=pictures, text=prompts, **options)
    assert [one["generated_text"] for one in together] == alone


def test_stop_strings_end_an_answer(folder):
    model, processor = inference.load(folder, "cpu")
    inputs = inference.inputs_of(processor, "What colour is the cat?", [picture()])
    whole = processor.tokenizer.decode(
        model.generate(**inputs, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :]
    )
    stop = whole[len(whole) // 3 : len(whole) // 3 + 2]
    out = model.generate(
        **inputs, max_new_tokens=NEW, stop_strings=[stop], tokenizer=processor.tokenizer
    )
    text = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
    assert stop in text
    assert len(text) < len(whole)
    assert whole.startswith(text)
