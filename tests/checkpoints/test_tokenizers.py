import json

import pytest

from dpn import DPNProcessor
from dpn.checkpoints.tokenizers import has_tokenizer, read_tokenizer
from tests.checkpoints.conftest import CORPUS, VOCABULARY, write_tokenizer


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_sentencepiece_file_reads_as_sentencepiece_does(legacy, tmp_path):
    pieces = write_tokenizer(tmp_path, ["<ROUTER>"], legacy)
    # The class that an original folder names must not matter.
    claims = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(claims))
    tokenizer = read_tokenizer(tmp_path)
    for text in (*CORPUS, "Zoë: 3 lazy dogs", "two\n\nlines"):
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


def test_no_tokenizer(tmp_path):
    assert not has_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"looked for tokenizer\.json, tokenizer\.model"):
        read_tokenizer(tmp_path)
