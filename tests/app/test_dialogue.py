"""A conversation that continues from its cache against recomputing all of it."""

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from dpn import inference
from dpn.cost import append_flops
from dpn.data.batch import DataError
from dpn.dialogue import Chat
from tests.talkers import make_talker, picture

NEW = 5
QUESTIONS = ["What colour is the cat?", "How many birds are there?", "Are you sure? I think 12."]
IMAGES = {"no image": [], "one": [picture()], "two": [picture(1), picture(2)]}
# Routers whose routes do not depend on later turns.
ROUTERS = [
    {"name": "none"},
    {"name": "static", "layers": [0, 2]},
    {"name": "dpe", "layers": [0, 2], "min_rows": 1, "read": "first"},
    {"name": "fastv", "k": 1},
]


@pytest.fixture(params=ROUTERS, ids=lambda router: router["name"])
def talker(request):
    return make_talker(request.param)


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_answers_equal_recomputing_the_whole_conversation(images, talker):
    """The reference computes every row of the conversation's ids, with the first turn's route."""
    model, processor = talker
    chat = Chat(model, processor, NEW)
    answers = []
    for question in QUESTIONS:
        found = chat.ask(question, () if answers else images)
        ids = torch.tensor([chat._ids[: -found["new_tokens"]]])
        if not answers:
            first = dict(processor(messages=chat.messages[:1], images=images or None))
            end = torch.tensor([ids.shape[1]])
        anew = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "instruction_end": end}
        (want,) = inference.answer(model, processor, first | anew, NEW)
        for key in ("answer", "route", "rows", "base_rows", "new_tokens"):
            assert found[key] == want[key]
        assert answers or found["prefill_flops"] == want["prefill_flops"]
        answers.append(found["answer"])
    assert len(set(answers)) > 1
    assert [message["content"] for message in chat.messages[1::2]] == answers


def speak_plainly(model, processor):
    """Let a model answer with whole words only, whose text is tokenized into the same ids."""
    weight = model.lm_head.weight.data
    black, cat = (processor.tokenizer(word).input_ids for word in (" black", " cat"))
    assert len(black) == len(cat) == 1
    direction = weight[black[0]].clone()
    weight.zero_()
    weight[black[0]], weight[cat[0]] = direction, -direction


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_the_ids_equal_the_processors_rendering(images):
    model, processor = make_talker({"name": "static", "layers": [0, 2]})
    speak_plainly(model, processor)
    chat = Chat(model, processor, NEW)
    for number, question in enumerate(QUESTIONS):
        found = chat.ask(question, images if number == 0 else ())
        inputs = dict(processor(messages=chat.messages[:-1], images=images or None))
        assert chat._ids[:-NEW] == inputs["input_ids"][0].tolist()
        assert found["answer"] == inference.answer(model, processor, inputs, NEW)[0]["answer"]
        assert found["answer"].split() == processor.decode(chat._ids[-NEW:]).split()


def test_a_follow_up_after_an_end_token(monkeypatch):
    """The end token is not in the cache yet, and must appear only once in the conversation."""
    model, processor = make_talker({"name": "static", "layers": [0, 2]})
    chat = Chat(model, processor, NEW)
    eos = processor.tokenizer.eos_token_id
    chat.ask(QUESTIONS[0], [picture()])
    said = chat._ids[-NEW:]
    model.lm_head.weight.data[[said[2], eos]] = model.lm_head.weight.data[[eos, said[2]]]
    chat.reset()
    assert chat.ask(QUESTIONS[0], [picture()])["new_tokens"] == said.index(said[2]) + 1
    assert chat._ids[-1] == eos
    chat.ask(QUESTIONS[1])
    assert chat._ids.count(eos) == 1 + (chat._ids[-1] == eos)


def test_earlier_turns_are_not_computed_again(talker, monkeypatch):
    model, processor = talker
    chat = Chat(model, processor, NEW)
    chat.ask(QUESTIONS[0], [picture()])
    rows = []
    model.language.layers[0].register_forward_pre_hook(lambda _, args: rows.append(args[0].shape))
    monkeypatch.setattr(model, "_pack", None)  # images are not encoded again
    before, held = len(chat._ids), [int(stage.lengths[0]) for stage in chat._cache.stage_of]
    found = chat.ask(QUESTIONS[1])
    added = len(chat._ids) - before + 1 - NEW  # with the answer's last id, not in the cache yet
    assert [shape[1] for shape in rows] == [added, *[1] * (NEW - 1)]
    assert found["prefill_flops"] == append_flops(added, held, model.config.text_config)


def test_images_belong_to_the_first_turn():
    chat = Chat(*make_talker(), NEW)
    chat.ask(QUESTIONS[0])
    for words, images in ((QUESTIONS[1], [picture()]), ("<image> What?", [])):
        with pytest.raises(DataError, match="<image> stands in a later turn"):
            chat.ask(words, images)
    assert len(chat.messages) == 2
    chat.reset()
    assert chat.ask(QUESTIONS[0], [picture()])["base_rows"] == 16


@pytest.mark.parametrize(
    ("words", "sentence"), [("", "is empty"), ("</s>", "reserved token"), ("\udfff", "half")]
)
def test_invalid_messages_are_refused(words, sentence):
    chat = Chat(*make_talker(), NEW)
    for _ in range(2):
        with pytest.raises(DataError, match=sentence):
            chat.ask(words)
        found = chat.ask(QUESTIONS[0])
    assert found["new_tokens"] == NEW


def test_a_template_without_user_text_has_one_turn():
    chat = Chat(*make_talker(template="plain"), NEW)
    chat.ask("What?", [picture()])
    with pytest.raises(DataError, match="template=plain leaves out the user's text"):
        chat.ask("And?")


class Stop(BaseStreamer):
    """Interrupts an answer at its second token."""

    def __init__(self):
        self.calls = 0

    def put(self, value):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt

    def end(self):
        raise AssertionError


def test_an_interrupted_answer():
    chat = Chat(*make_talker(), NEW)
    with pytest.raises(KeyboardInterrupt):
        chat.ask(QUESTIONS[0], streamer=Stop())
    want = chat.ask(QUESTIONS[0])["answer"]
    with pytest.raises(KeyboardInterrupt):
        chat.ask(QUESTIONS[1], streamer=Stop())
    with pytest.raises(RuntimeError, match="interrupted; start a new conversation"):
        chat.ask(QUESTIONS[1])
    chat.reset()
    assert chat.ask(QUESTIONS[0])["answer"] == want


def test_temperature_samples():
    model, processor = make_talker()

    def answer(seed):
        torch.manual_seed(seed)
        return Chat(model, processor, NEW, temperature=2.0).ask(QUESTIONS[0])["answer"]

    assert answer(1) == answer(1) != answer(2)
