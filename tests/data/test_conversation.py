import json
import random
import re
from collections import Counter

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpn.data.batch import DataError
from dpn.data.conversation import IMAGE, ROUTER, TEMPLATES, read_turns
from dpn.data.encoding import encode
from dpn.data.tokenizer import train_tokenizer
from tests.data.conftest import CORPUS, gpt, human

CAT = (human(f"{IMAGE}\nWhat colour is the cat?"), gpt("It is black."))
BIRDS = (human("How many birds?"), gpt("There are 12."))
CONVERSATIONS = {
    "one turn": (CAT, 1),
    "image mark last": ((human(f"What colour is the cat?\n{IMAGE}"), CAT[1]), 1),
    "several turns": (CAT + BIRDS + BIRDS, 1),
    "image in a later turn": (BIRDS + CAT, 1),
    "an image in each turn": (CAT + CAT, 2),
    "an image without words": ((human(IMAGE), CAT[1], *BIRDS), 1),
    "no image": (BIRDS + BIRDS, 0),
    "answers of one letter, with blanks and lines": (
        (*CAT, human(" B? "), gpt("B"), human("and\n"), gpt("a b\n\nc ")),
        1,
    ),
    "any script": ((human("Où? 在哪里"), gpt("là-bas 🐈‍⬛ 那里")), 0),
    "opened by the assistant": ((gpt("Hello!"), *BIRDS), 0),
}


def llama_like():
    """Llama's tokenizer in small: pieces of SentencePiece, bytes for what it has no piece for, a
    blank put before every text between special tokens (`legacy=True`)."""
    special = ["<unk>", "<s>", "</s>"]
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    letters.train_from_iterator(
        [text.replace("\n", " ") for text in CORPUS],
        trainers.BpeTrainer(special_tokens=special, show_progress=False),
    )
    learned = json.loads(letters.to_str())["model"]
    pieces = [piece for piece in learned["vocab"] if piece not in special]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    model = models.BPE(
        {piece: number for number, piece in enumerate(pieces)},
        [tuple(merge) for merge in learned["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[IMAGE, ROUTER],
    )


@pytest.fixture(scope="module", params=["bytes", "llama"])
def tokenizer(request):
    return train_tokenizer(CORPUS) if request.param == "bytes" else llama_like()


def naive_llava(messages, tokenizer):
    """LLaVA's own procedure for `v1`, restated: one string, then lengths of re-tokenised rounds."""

    def ids_of(text):
        """Chunks between images, each tokenised with BOS, all but one BOS dropped."""
        chunks = [
            [tokenizer.bos_token_id, *tokenizer(chunk, add_special_tokens=False).input_ids]
            for chunk in text.split(IMAGE)
        ]
        ids = chunks[0]
        for chunk in chunks[1:]:
            ids = [*ids, tokenizer.convert_tokens_to_ids(IMAGE), *chunk[1:]]
        return ids

    if messages[0]["from"] == "gpt":
        messages = messages[1:]
    text = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    for message in messages:
        value = message["value"]
        if IMAGE in value:
            value = (IMAGE + "\n" + value.replace(IMAGE, "").strip()).strip()
        role, end = ("USER", " ") if message["from"] == "human" else ("ASSISTANT", "</s>")
        text += f"{role}: {value}{end}" if value else f"{role}:"
    ids = ids_of(text)
    labels = list(ids)
    labels[0] = -100
    cur = 1
    for text_round in text.split("</s>"):
        if text_round == "":
            break
        parts = text_round.split(" ASSISTANT: ")
        if len(parts) != 2:
            break
        round_length = len(ids_of(text_round))
        instruction_length = len(ids_of(parts[0] + " ASSISTANT: ")) - 2
        labels[cur : cur + instruction_length] = [-100] * instruction_length
        cur += round_length
    return ids, labels if cur == len(ids) else [-100] * len(ids)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_v1_equals_the_procedure_of_llava(name, tokenizer):
    messages, images = CONVERSATIONS[name]
    got = encode(read_turns(messages), images, tokenizer, TEMPLATES["v1"], router=False)
    assert got == naive_llava(messages, tokenizer)


WORDS = [
    *(
        "hi",
        "What colour is the cat?",
        "12",
        "birds,",
        "I think.",
        "Où",
        "在哪里",
        "🐈‍⬛",
        "é",
        "x" * 20,
    ),
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\n\n",
        " .",
        "-",
        "{eos}",
        "USER: ",
        "ASSISTANT",
        "ASSISTANT:",
        "<",
        "▁",
    ),
]
ODD = ["</s>", " ASSISTANT: ", " ASSISTANT:", "ASSISTANT: ", "</s>USER: ", "<s>", "<0x0A>", ""]


def odd_conversation(rng):
    """Turns of random words; about half of the conversations have something unusual."""
    odd = rng.random() < 0.5

    def text(least):
        words = rng.choices(WORDS, k=rng.randint(least, 5))
        if odd and rng.random() < 0.3:
            words.insert(rng.randint(0, len(words)), rng.choice(ODD))
        return rng.choice(["", " "]).join(words)

    messages = [gpt(text(1))] if rng.random() < 0.1 else []
    for _ in range(rng.randint(1, 4)):
        question = text(0 if odd else 1)
        if rng.random() < 0.3:
            place = rng.randint(0, len(question))
            question = question[:place] + IMAGE + question[place:]
        messages += [human(question), gpt(text(0 if odd else 1))]
    return messages


# Refused although LLaVA trains on them: blank answers, and texts that it mistakes for other turns.
STRICTER = r"turn \d+ is empty|holds the reserved token|inside a text, where no answer"


def test_v1_equals_the_procedure_of_llava_or_refuses_what_it_masks(tokenizer):
    """A row that LLaVA would mask completely is refused with the number of the bad turn."""

    def try_to_encode(messages):
        images = sum(IMAGE in m["value"] for m in messages if m["from"] == "human")
        try:
            return encode(read_turns(messages), images, tokenizer, TEMPLATES["v1"], router=False)
        except DataError as error:
            return str(error)

    rng = random.Random(0)
    outcomes = Counter()
    for _ in range(500):
        messages = odd_conversation(rng)
        expected, got = naive_llava(messages, tokenizer), try_to_encode(messages)
        if set(expected[1]) == {-100}:
            assert re.search(r"(turn|round) \d", got), messages
            outcomes["masked"] += 1
        elif isinstance(got, str):
            assert re.search(STRICTER, got), messages
            outcomes["stricter"] += 1
        else:
            assert got == expected, messages
            outcomes["equal"] += 1
    assert min(outcomes.values()) > 10
    assert outcomes["equal"] > 200


def test_text_after_an_image_gets_a_leading_piece_of_its_own():
    tokenizer = llama_like()
    turns = read_turns([human(f"{IMAGE}\nWhat?"), gpt("It is.")])
    ids, labels = encode(turns, 1, tokenizer, TEMPLATES["v1"], router=False)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    place = pieces.index(IMAGE)
    assert pieces[place - 1 : place + 4] == ["▁", IMAGE, "▁", "<0x0A>", "What"]
    answer = [piece for piece, label in zip(pieces, labels, strict=True) if label != -100]
    assert answer == ["▁It", "▁is", ".", "</s>"]


def test_plain_supervises_everything_after_the_image(tokenizer):
    messages = [human(f"Describe it.\n{IMAGE}"), gpt("It is black.")]
    ids, labels = encode(read_turns(messages), 1, tokenizer, TEMPLATES["plain"], router=False)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    caption = tokenizer("It is black.\n", add_special_tokens=False).input_ids
    assert ids == [tokenizer.bos_token_id, image, *caption]
    assert labels == [-100, -100, *caption]


@pytest.mark.parametrize("style", ["v1", "plain"])
def test_router_token_ends_every_human_turn_of_image_samples_unsupervised(style, tokenizer):
    turns = read_turns(CAT + BIRDS)
    router = tokenizer.convert_tokens_to_ids(ROUTER)
    with_token, labels = encode(turns, 1, tokenizer, TEMPLATES[style], router=True)
    assert with_token.count(router) == 2
    assert router not in labels
    following = tokenizer.decode(with_token[with_token.index(router) + 1 :]).strip()
    assert following.startswith("ASSISTANT" if style == "v1" else "It is black.")
    text_only, _ = encode(read_turns(BIRDS), 0, tokenizer, TEMPLATES[style], router=True)
    assert router not in text_only


def test_ids_before_the_first_answer_do_not_change_when_answers_do(tokenizer):
    """The rows before the first answer, which a route depends on, are the same."""
    first = encode(read_turns(CAT), 1, tokenizer, TEMPLATES["v1"], router=True)
    other = encode(read_turns([CAT[0], gpt("12 birds")]), 1, tokenizer, TEMPLATES["v1"], True)
    start = next(i for i, label in enumerate(first[1]) if label != -100)
    assert first[0][:start] == other[0][:start]
    assert other[1][start] == other[0][start]


@pytest.mark.parametrize(
    ("messages", "images", "sentence"),
    [
        (None, 0, "there is no conversation"),
        ([], 0, "there is no conversation"),
        ("hello", 0, "there is no conversation"),
        ([gpt("Hello!")], 0, "no human turn"),
        (["hello"], 0, "turn 1 is 'hello'; it must be a mapping"),
        ([{"from": "robot", "value": "hi"}], 0, "turn 1 has the unknown role 'robot'; use"),
        ([human("hi"), {"from": "gpt"}], 0, "turn 2 has no text"),
        ([human("hi"), {"from": "gpt", "value": [{"type": "audio"}]}], 0, "turn 2 has no text"),
        ([{"from": ["human"], "value": "hi"}], 0, r"the unknown role \['human'\]"),
        ([human("\ud83d"), gpt("ho")], 0, "turn 1 holds a lone surrogate"),
        ([human(""), gpt("ho")], 0, "the question in turn 1 is empty"),
        ([human("the ASSISTANT: a"), gpt("ho")], 0, "round 1 holds ' ASSISTANT: ' inside a text"),
        ([*BIRDS, human("hi"), gpt("a ASSISTANT: b")], 0, "round 2 holds ' ASSISTANT: ' inside"),
        ([human("hi"), gpt(" \n")], 0, "the answer in turn 2 is empty"),
        ([human("hi"), human("ho")], 0, "two turns of the human follow each other"),
        ([human("hi"), gpt("ho")], 1, "hold 0 <image> marks but the row has 1 images"),
        ([human(f"{IMAGE}{IMAGE} hi"), gpt("ho")], 1, "hold 2 <image> marks but the row has 1"),
        ([human(f"{IMAGE} hi"), gpt("ho")], 0, "hold 1 <image> marks but the row has 0"),
        ([human("hi"), gpt(IMAGE)], 0, "turn 2 of the assistant holds the reserved token <image>"),
        ([human("hi</s>"), gpt("ho")], 0, "turn 1 of the human holds the reserved token </s>"),
        ([human(f"hi{ROUTER}"), gpt("ho")], 0, "holds the reserved token <ROUTER>"),
        ([human("hi " * 99), gpt("ho")], 0, r"the sample has \d+ ids, the maximum is 90"),
    ],
)
def test_bad_conversations_are_refused_with_a_sentence(messages, images, sentence, tokenizer):
    with pytest.raises(DataError, match=sentence):
        encode(read_turns(messages), images, tokenizer, TEMPLATES["v1"], False, max_length=90)


def test_typed_parts_of_hugging_face_messages(tokenizer):
    parts = [{"type": "image"}, {"type": "text", "text": "What colour is the cat?"}]
    turns = read_turns([{"role": "user", "content": parts}, {"role": "assistant", "content": "?"}])
    assert turns[0].text == f"{IMAGE}What colour is the cat?"


def test_tokenizer_reads_digits_one_by_one_and_any_text():
    tokenizer = train_tokenizer(CORPUS)
    assert [t for t in tokenizer.tokenize("12 of 345") if t.isdigit()] == list("12345")
    text = "Zoë\t漢字 <image>\n🐈"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (
        train_tokenizer(CORPUS).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    )
