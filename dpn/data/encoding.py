"""Encode rendered conversations as token ids and labels.

As in LLaVA, the text between two `<image>` marks is tokenised as one chunk. The tokenizer's
character offsets tell which ids are supervised, so no length is guessed and any Hugging Face fast
tokenizer works.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from dpn.data import transformers_4_31
from dpn.data.batch import IGNORE, DataError
from dpn.data.conversation import IMAGE, Piece, Template, Turn, checked_pieces, render

#: How text is tokenised: as the tokenizer does it now, or as in the transformers release of DPN.
Tokenization = Literal["tokenizer", "transformers-4.31"]


def tokenize(
    pieces: Iterable[Piece], tokenizer: Any, tokenization: Tokenization = "tokenizer"
) -> tuple[list[int], list[int]]:
    """Return the ids, starting with BOS, and the labels of rendered pieces.

    An id is supervised if its first character is. Text between two images is tokenised as one
    chunk.

    Args:
        pieces: Rendered conversation.
        tokenizer: Hugging Face fast tokenizer with an `<image>` token.
        tokenization: `tokenizer`, or `transformers-4.31`, see `dpn.data.transformers_4_31`.
    """
    encode_text = ENCODERS[tokenization]
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    ids, labels = [tokenizer.bos_token_id], [IGNORE]
    for number, chunk in enumerate(_chunks(pieces)):
        if number:
            ids.append(image_id)
            labels.append(IGNORE)
        text = "".join(piece.text for piece in chunk)
        if not text:
            continue
        supervised = [flag for piece in chunk for flag in [piece.supervised] * len(piece.text)]
        for token, start in encode_text(text, tokenizer):
            ids.append(token)
            labels.append(token if supervised[start] else IGNORE)
    return ids, labels


def _encode_text(text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Encode a text without BOS; each id comes with the place of its first character."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    return list(zip(encoded["input_ids"], starts, strict=True))


ENCODERS: dict[str, Callable[[str, Any], list[tuple[int, int]]]] = {
    "tokenizer": _encode_text,
    "transformers-4.31": transformers_4_31.encode_text,
}


def encode(
    turns: Sequence[Turn],
    images: int,
    tokenizer: Any,
    style: Template,
    router: bool,
    max_length: int | None = None,
    tokenization: Tokenization = "tokenizer",
) -> tuple[list[int], list[int]]:
    """Encode a conversation as ids and labels.

    Args:
        turns: Alternating turns, starting with the human; a final human turn is left open for the
            answer.
        images: Number of images in the sample.
        tokenizer: Hugging Face fast tokenizer with an `<image>` token.
        style: Conversation template.
        router: Whether `<ROUTER>` ends every human turn of a sample with images.
        max_length: Maximum number of ids, each image counted as one.
        tokenization: See `tokenize`.

    Raises:
        DataError: If the conversation is too long or cannot be learned (see `checked_pieces`).
    """
    pieces = checked_pieces(turns, images, style, tokenizer.eos_token, router)
    ids, labels = tokenize(pieces, tokenizer, tokenization)
    if max_length is not None and len(ids) > max_length:
        raise DataError(
            f"the sample has {len(ids)} ids, the maximum is {max_length};"
            " raise `data.max_length`, set data.too_long=cut or drop the row."
        )
    return ids, labels


def cut(
    ids: list[int], labels: list[int], max_length: int, image_id: int
) -> tuple[list[int], list[int]]:
    """Truncate a sample to its first `max_length` ids and labels.

    Raises:
        DataError: If an image or all answers would be lost.
    """
    kept, supervised = ids[:max_length], labels[:max_length]
    if image_id in ids[max_length:]:
        lost = "an image comes after"
    elif supervised.count(IGNORE) == len(supervised):
        lost = "no answer begins within"
    else:
        return kept, supervised
    raise DataError(f"{lost} the first {max_length} ids; raise `data.max_length` or drop the row.")


def corpus_text(turns: Sequence[Turn], images: int, style: Template) -> list[str]:
    """Return the rendered text between images, without special tokens, to train a tokenizer on."""
    pieces = render(turns, images, style, eos="", router=False)
    return ["".join(piece.text for piece in chunk) for chunk in _chunks(pieces)]


def _chunks(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Split pieces into chunks at the `<image>` marks."""
    chunks: list[list[Piece]] = [[]]
    for text, supervised in pieces:
        first, *others = text.split(IMAGE)
        chunks[-1].append(Piece(first, supervised))
        chunks.extend([Piece(other, supervised)] for other in others)
    return chunks
