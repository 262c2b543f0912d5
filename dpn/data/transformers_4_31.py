"""Token ids of Llama's slow tokenizer in transformers 4.31, with which DPN was released.

That release splits a text at special tokens, encodes each part with a blank before it, and then
removes the blank from the first piece. Later releases encode the part without the blank, which
often gives other pieces: after `<ROUTER>` the word `ASSISTANT` is `A SS IST ANT` in 4.31 and `ASS
IST ANT` later, and after `</s>` the word `USER` is `US ER` and later a single piece.
"""

import re
from typing import Any

_BLANK = "▁"


def encode_text(text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Encode a text without BOS.

    Args:
        text: Text that may contain special tokens.
        tokenizer: Fast tokenizer of Llama's pieces. If it puts a blank before text that follows a
            special token (`legacy=true`), the blank is kept, as in 4.31.

    Returns:
        Each id with the place of its first character in the text. A piece that the vocabulary does
        not have without its blank becomes the unknown token, as in 4.31.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    keeps_space = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    legacy = tokenizer.tokenize(f"{tokenizer.eos_token}a")[1].startswith(_BLANK)
    if not legacy:
        text = text.replace(_BLANK, " ")
    longest_first = sorted(added, key=len, reverse=True)
    # Text and special tokens alternate; the first and the last part are text.
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    found: list[tuple[int, int]] = []
    end = 0
    for place, part in enumerate(parts):
        start, end = end, end + len(part)
        if place % 2:
            found.append((tokenizer.convert_tokens_to_ids(part), start))
            continue
        # White space beside a token that was added to the vocabulary is lost. Beside BOS, EOS and
        # the unknown token it stays, since released folders describe these by objects, not strings.
        if place and parts[place - 1] not in keeps_space:
            start += len(part) - len(part.lstrip())
            part = part.lstrip()
        if place + 1 < len(parts) and parts[place + 1] not in keeps_space:
            part = part.rstrip()
        if part:
            bare = place > 0 and not legacy and not part.startswith(" ")
            found += [(token, start + first) for token, first in _encode(part, tokenizer, bare)]
    return found


def _encode(part: str, tokenizer: Any, bare: bool) -> list[tuple[int, int]]:
    """Encode a text without special tokens; `bare` removes the blank before its first piece."""
    encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    pieces = list(zip(encoded["input_ids"], starts, strict=True))
    first = tokenizer.convert_ids_to_tokens(pieces[0][0])
    if not bare or not first.startswith(_BLANK):
        return pieces
    rest = first.removeprefix(_BLANK)
    return [*([(tokenizer.convert_tokens_to_ids(rest), 0)] if rest else []), *pieces[1:]]
