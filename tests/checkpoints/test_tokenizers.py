import json
import random
import re

import pytest
from PIL import Image

from dpn import DPNProcessor
from dpn.checkpoints.tokenizers import has_tokenizer, read_tokenizer
from dpn.common.errors import FileError
from dpn.data import transformers_4_31
from dpn.data.batch import IGNORE
from dpn.data.conversation import read_turns
from tests.checkpoints.conftest import CORPUS, VOCABULARY, write_tokenizer


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_sentencepiece_file_reads_as_sentencepiece_does(legacy, tmp_path):
    pieces = write_tokenizer(tmp_path, ["<ROUTER>"], legacy)
    # The class that an original folder names must not matter.
    claims = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(claims))
    tokenizer = read_tokenizer(tmp_path)
    blanks = (" a cat", "  a cat", " ", "\n a", "▁a", " ASSISTANT:")
    for text in (*CORPUS, "Zoë: 3 lazy dogs", "two\n\nlines", *blanks):
        assert tokenizer(text).input_ids == [1, *pieces.encode(text)]
    assert tokenizer.convert_tokens_to_ids("<ROUTER>") == VOCABULARY
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 2048)
    # Text after a special token starts with a space only in legacy mode.
    tokens = tokenizer.tokenize("fox</s>USER: What")
    after = tokens[tokens.index("</s>") + 1]
    assert after.startswith("▁") == (legacy is not False)


@pytest.mark.parametrize("legacy", [True, False])
def test_written_and_read_again_it_stays_the_same(legacy, tmp_path):
    write_tokenizer(tmp_path / "old", ["<ROUTER>"], legacy)
    processor = DPNProcessor(read_tokenizer(tmp_path / "old"))
    processor.save_pretrained(tmp_path / "new")
    again = DPNProcessor.from_pretrained(tmp_path / "new")
    ids = (again.router_token_id, again.image_token_id, again.pad_token_id, again.vocab_size)
    assert ids == (VOCABULARY, VOCABULARY + 1, 0, VOCABULARY + 2)
    text = "USER: <image>\nWhat is this?<ROUTER> ASSISTANT: a cat</s>USER: the lazy dog"
    want = processor.tokenizer(text).input_ids
    for tokenizer in (again.tokenizer, read_tokenizer(tmp_path / "new")):
        assert tokenizer(text).input_ids == want


def slow_tokenizer(pieces, text, legacy):
    """Ids without BOS, restated from transformers 4.31: `PreTrainedTokenizer.tokenize`, which
    strips white space beside tokens that were added as plain strings, and Llama's `_tokenize`.
    """
    text = text if legacy else "▁" + text.replace("▁", " ")
    parts = [part for part in re.split("(<s>|</s>|<unk>|<ROUTER>)", text) if part]
    for place, part in enumerate(parts):
        if part == "<ROUTER>":
            if place:
                parts[place - 1] = parts[place - 1].rstrip()
            if place + 1 < len(parts):
                parts[place + 1] = parts[place + 1].lstrip()
    ids = []
    for part in filter(None, parts):
        if part in ("<s>", "</s>", "<unk>", "<ROUTER>"):
            ids.append(VOCABULARY if part == "<ROUTER>" else pieces.piece_to_id(part))
            continue
        first = not legacy and part.startswith("▁")
        part = part[1:] if first else part
        tokens = pieces.encode(part, out_type=str)
        if not legacy and not first and not part.startswith(" ") and tokens[0].startswith("▁"):
            tokens = ([tokens[0][1:]] if len(tokens[0]) > 1 else []) + tokens[1:]
        ids += [pieces.piece_to_id(token) for token in tokens]
    return ids


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_of_transformers_4_31(legacy, tmp_path):
    pieces = write_tokenizer(tmp_path, ["<ROUTER>"], legacy)
    tokenizer = read_tokenizer(tmp_path)
    words = "A chat|USER: |What is| ASSISTANT:|ASSISTANT: a cat|</s>|<ROUTER>|<s>| |\n|▁|Zoë|."
    rng = random.Random(0)
    texts = ["".join(rng.choices(words.split("|"), k=rng.randint(1, 8))) for _ in range(300)]
    differing = 0
    for text in texts:
        found = transformers_4_31.encode_text(text, tokenizer)
        assert [token for token, _ in found] == slow_tokenizer(pieces, text, legacy), text
        starts = [start for _, start in found]
        assert starts == sorted(starts)
        assert all(0 <= start < len(text) for start in starts)
        now = tokenizer(text, add_special_tokens=False).input_ids
        differing += now != [token for token, _ in found]
    assert differing > 20


@pytest.mark.parametrize("legacy", [True, False])
def test_a_processor_with_the_tokenization_of_4_31(legacy, tmp_path):
    pieces = write_tokenizer(tmp_path / "old", ["<ROUTER>"], legacy)
    processor = DPNProcessor(
        read_tokenizer(tmp_path / "old"), "short", tokenization="transformers-4.31"
    )
    processor.save_pretrained(tmp_path / "new")
    again = DPNProcessor.from_pretrained(tmp_path / "new")
    assert again.tokenization == "transformers-4.31"
    turns = ["<image>\nWhat is this?", "a cat", "and 12 birds?", "hello"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
    ids, labels = again.encode(read_turns(messages), 1)
    rest = "\nWhat is this?<ROUTER> ASSISTANT: a cat</s>USER: and 12 birds?<ROUTER> ASSISTANT:"
    rest += " hello</s>"
    image = [again.image_token_id]
    first = slow_tokenizer(pieces, "USER: ", legacy)
    assert ids == [1, *first, *image, *slow_tokenizer(pieces, rest, legacy)]
    learned = [label for label in labels if label != IGNORE]
    assert pieces.decode([i for i in learned if i < VOCABULARY]) == "a cat hello"
    asked = again.prompt(messages[:3])
    prompt = again(text=asked, images=None if "<image>" not in asked else _picture())
    length = prompt["input_ids"].shape[1]
    assert prompt["input_ids"][0].tolist() == ids[:length]
    # What follows an answer in a chat continues the same ids.
    end = again.prompt(messages[:1])
    start = again(text=end, images=_picture())["input_ids"][0].tolist()
    answer = ids[len(start) : ids.index(2)]
    assert [*start, *answer, *again.follow_up(messages[2], images=True)] == ids[:length]


def test_an_unknown_tokenization(tmp_path):
    write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"choose tokenizer or transformers-4\.31"):
        DPNProcessor(read_tokenizer(tmp_path), tokenization="4.31")


def _picture():
    return Image.new("RGB", (8, 8))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff\x00"])
def test_damaged_files_are_a_sentence(file, content, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / file).write_bytes(content)
    if file == "tokenizer_config.json" and content == b'{"model": 1}':
        return  # a setting that nothing reads
    with pytest.raises(FileError, match=f"{tmp_path.name}.* (is not valid|holds)"):
        read_tokenizer(tmp_path)


def test_no_tokenizer(tmp_path):
    assert not has_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"looked for tokenizer\.json, tokenizer\.model"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("legacy", [True, False])
def test_added_tokens_stand_for_themselves(legacy, tmp_path):
    write_tokenizer(tmp_path, ["<image>"], legacy)
    tokens = read_tokenizer(tmp_path)("USER: <image>\n<image><image> a").tokens()
    assert tokens.count("<image>") == 3
    assert tokens[:5] == ["<s>", "▁", "US", "ER", ":"]
    assert tokens[5] == "▁"  # the blank before the first one is kept
