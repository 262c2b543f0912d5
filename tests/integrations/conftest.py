"""Fixtures: a tiny saved model that answers in whole words, and documents of each kind for it."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from dpn import inference
from tests.talkers import make_talker, picture


class Document(NamedTuple):
    """One document of a task."""

    question: str
    images: list[Image.Image]


#: Documents without image, with one or two, with and without marks; not sorted by length.
DOCUMENTS = [
    Document("What colour is the cat on the sofa, black or white?", [picture(0, 16, 16)]),
    Document("How many birds?", []),
    Document("Is <image> as <image>?", [picture(1, 16, 16), picture(2, 8, 16)]),
    Document("Which?", [picture(3, 16, 8)]),
    Document("How many cats are there in both?", [picture(4, 16, 16), picture(5, 16, 16)]),
]


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Folder of the model."""
    model, processor = make_talker({"name": "dpe", "layers": [0, 2], "min_rows": 1})
    tokenizer = processor.tokenizer
    texts = [tokenizer.decode([token]) for token in range(processor.vocab_size)]
    others = [
        token
        for token, text in enumerate(texts)
        if not (text[:1] == " " and text[1:].isalpha() and tokenizer(text).input_ids == [token])
    ]
    with torch.no_grad():
        model.lm_head.weight[others] = 0
        for name, weight in model.named_parameters():
            if name.startswith(("router.gates", "vision")):
                weight.mul_(3)
    folder = tmp_path_factory.mktemp("run")
    inference.save(model, processor, folder)
    return folder


@pytest.fixture(scope="session")
def loaded(run):
    """Model and processor."""
    return inference.load(run, "cpu")


def words(document: Document) -> str:
    """The question, with a mark for each image."""
    missing = len(document.images) - document.question.count("<image>")
    return "<image>" * missing + document.question


def answer(loaded, document: Document, most: int = 6, **options) -> str:
    """Return the answer of `dpn.inference`, asked in a batch of its own."""
    return inference.ask(*loaded, words(document), document.images, most, **options)["answer"]


def naive_logprob(loaded, document: Document, continuation: str) -> tuple[float, bool]:
    """Compute the log-probability of a continuation without padding, from all logits."""
    model, processor = loaded
    prompt = processor.prompt([{"role": "user", "content": words(document)}])
    start = processor(prompt, document.images).input_ids.shape[1]
    inputs = processor(f"{prompt} {continuation}", document.images)
    with torch.no_grad():
        logits = model(**inputs, instruction_end=torch.tensor([start])).logits[0].double()
    total, greedy = 0.0, True
    for column in range(start, inputs.input_ids.shape[1]):
        token = int(inputs.input_ids[0, column])
        total += float(logits[column - 1].log_softmax(0)[token])
        logits[column - 1, processor.image_token_id] = -torch.inf
        greedy = greedy and int(logits[column - 1].argmax()) == token
    return total, greedy
