"""Tests that would be slow with the real lmms-eval, on a stand-in for its base class."""

import copy
import logging
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest

from dpn import inference
from tests.integrations.conftest import DOCUMENTS, answer, naive_logprob, words

ADAPTER = "dpn.integrations.lmms_eval"


class Base:
    """Stand-in for the parts of `lmms_eval.api.model.lmms` that an adapter uses."""

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @property
    def rank(self):
        return self._rank


@dataclass
class Result:
    text: object


@pytest.fixture(scope="module")
def costs():
    """Logged costs."""
    return []


@pytest.fixture(scope="module")
def adapter(costs):
    """The adapter's module with stand-ins for lmms-eval's modules."""
    modules = {
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.api.instance": {"GenerationResult": Result, "Instance": SimpleNamespace},
        "lmms_eval.models.model_utils.gen_metrics": {"log_metrics": lambda *a: costs.append(a)},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, content in modules.items():
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                module = sys.modules.get(".".join(parts[:end])) or ModuleType(parts[end - 1])
                patch.setitem(sys.modules, ".".join(parts[:end]), module)
            vars(module).update(content)
        yield import_module(ADAPTER)
        patch.delitem(sys.modules, ADAPTER)


@pytest.fixture
def model(adapter, run):
    """Function that creates the model for a batch size; its task is `pope`."""

    def make(batch_size=2, **arguments):
        made = adapter.DPN(run=str(run), batch_size=batch_size, device="cpu", **arguments)
        made.task_dict["pope"] = {"test": DOCUMENTS}
        return made

    return make


def request(number, second, context=None, visuals=lambda document: document.images):
    context = DOCUMENTS[number].question if context is None else context
    return SimpleNamespace(args=(context, second, visuals, number, "pope", "test"))


@pytest.mark.parametrize("batch_size", [pytest.param("1", marks=pytest.mark.slow), 2])
def test_each_request_is_answered_as_its_own_settings_say(batch_size, model, loaded):
    wishes = [
        {"max_new_tokens": 2, "until": ["\n\n"], "temperature": 0.0},
        {"max_gen_toks": 6, "until": "colour", "do_sample": False},
        {"num_beams": 3, "until": None},
    ]
    own = [
        {"most": 2},
        {"most": 6, "stop": ["colour"]},
        {"most": 4, "num_beams": 3},
    ]
    numbers = [*range(len(DOCUMENTS)), 3, 1]
    requests = [request(n, wishes[k % 3]) for k, n in enumerate(numbers)]
    before = copy.deepcopy(wishes)
    found = model(batch_size, max_new_tokens=4).generate_until(requests)
    expected = [answer(loaded, DOCUMENTS[n], **own[k % 3]) for k, n in enumerate(numbers)]
    assert found == expected
    assert wishes == before


def test_cost_is_the_mean_of_what_dpn_measures(model, costs, loaded):
    requests = [request(n, {"max_new_tokens": 3}) for n in range(len(DOCUMENTS))]
    model().generate_until(requests)
    asked = [inference.ask(*loaded, words(d), d.images, 3) for d in DOCUMENTS]
    shares = [row["visual_macs_ratio"] for row in asked if row["base_rows"]]
    seconds, tokens, speed, further = costs[-1]
    assert (tokens, further["total_requests"]) == (15, 5)
    assert speed == tokens / seconds
    assert further["visual_macs_ratio"] == pytest.approx(sum(shares) / 4)
    assert model().generate_until([]) == []


@pytest.fixture(scope="module")
def probabilities(loaded):
    """Log-probability of each continuation of each document, and whether it is greedy."""
    greedy = [" ".join(answer(loaded, document).split()[:2]) for document in DOCUMENTS]
    texts = [*greedy, "black and white", "12"]
    asked = [(n, text) for text in texts for n in range(len(DOCUMENTS))]
    return {(n, text): naive_logprob(loaded, DOCUMENTS[n], text) for n, text in asked}


@pytest.mark.parametrize("batch_size", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_probabilities_are_those_of_one_sample_alone(batch_size, model, probabilities):
    asked, expected = list(probabilities), list(probabilities.values())
    targets = [request(n, lambda document, text=text: text) for n, text in asked]
    options = [request(n, f" {text}") for n, text in asked]
    for requests, sign in ((targets, 1), (options, -1)):
        pairs = [result.text for result in model(batch_size).loglikelihood(requests)]
        totals, flags = zip(*pairs, strict=True)
        assert [sign * t for t in totals] == pytest.approx([t for t, _ in expected], rel=1e-4)
        assert list(flags) == [flag for _, flag in expected]
    assert set(flags) == {True, False}


def test_what_would_be_generated_is_greedy(model):
    """Even if `<image>`, which answers never contain, is more probable."""
    made = model()
    first = made.generate_until([request(0, {"max_new_tokens": 6})])[0].split()[0]
    (word,) = made.processor.tokenizer(f" {first}").input_ids
    head = made.model.lm_head.weight.data
    head[made.processor.image_token_id] = 2 * head[word]
    (text,) = made.generate_until([request(0, {"max_new_tokens": 6})])
    pairs = made.loglikelihood([request(0, text), request(0, text[:-1])])
    assert [result.text[1] for result in pairs] == [True, False]


def broken(document):
    raise OSError("truncated file")


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (request(1, {}, "Is <image> red?"), "holds an <image> mark, but there are no images"),
        (request(1, {}, "Hi</s>"), "reserved token </s>"),
        (request(1, {}, visuals=lambda document: ["film.mp4"]), "its str is not an image"),
        (request(1, {}, visuals=broken), "truncated file"),
        (request(1, " "), "the continuation is ' '"),
        (request(1, lambda document: 3), "the continuation is 3"),
        (request(1, "yes</s>"), "reserved token </s>"),
        (request(1, {"max_new_tokens": 0}), "max_new_tokens"),
    ],
)
def test_requests_that_cannot_be_asked_are_named(bad, sentence, adapter, model):
    generates = isinstance(bad.args[1], dict)
    good = request(0, {"max_new_tokens": 1} if generates else "yes")
    method = "generate_until" if generates else "loglikelihood"
    with pytest.raises(adapter.AnswerError, match=f"pope, document 1: .*{sentence}"):
        getattr(model(1), method)([good, bad])


def test_a_failure_of_the_model_names_its_batch(adapter, model, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(adapter.inference, "answer", fail)
    with pytest.raises(adapter.AnswerError, match="pope, document 0; pope, document 1: out of mem"):
        model(2).generate_until([request(0, {}), request(1, {})])


@pytest.mark.parametrize(
    ("asked", "most", "options"),
    [
        ({}, 7, {"num_beams": 1, "stop": []}),
        ({"temperature": 0, "top_p": 1.0, "do_sample": True}, 7, {"num_beams": 1, "stop": []}),
        ({"temperature": 0.5, "do_sample": False}, 7, {"num_beams": 1, "stop": []}),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "until": ["a", ""], "seed": 0},
            7,
            {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["a"]},
        ),
        ({"do_sample": True, "top_p": None}, 7, {"do_sample": True, "temperature": 1.0}),
        ({"max_new_tokens": 3, "max_gen_toks": 5, "num_beams": 2}, 3, {"num_beams": 2}),
        ({"max_gen_toks": 5, "repetition_penalty": 1.2}, 5, {"repetition_penalty": 1.2}),
    ],
)
def test_decoding(asked, most, options, adapter):
    found, chosen = adapter.decoding(asked, 7)
    assert found == most
    standard = {"num_beams": 1, "stop": []} | ({"top_p": 1.0} if "do_sample" in options else {})
    assert chosen == standard | options


def test_ignored_settings_are_logged(model, caplog):
    requests = [request(1, {"max_new_tokens": 1, "image_aspect_ratio": "pad", "until": "x"})]
    with caplog.at_level(logging.WARNING):
        model().generate_until(requests)
    assert "ignores generation_kwargs image_aspect_ratio." in caplog.text


def test_unsupported_requests_are_refused(model):
    with pytest.raises(ValueError, match="batch_size=auto is not a number"):
        model("auto")
    with pytest.raises(ValueError, match="batch_size=0 is not a number"):
        model(0)
    with pytest.raises(NotImplementedError, match="answers one round"):
        model().generate_until_multi_round([])
