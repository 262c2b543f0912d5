"""Rows of the embedding and the head: they follow their tokens, never their number.

`<ROUTER>` is token 32000 in the released DPN models, `<image>` is in Hugging Face's LLaVA, whose
tables end in rows of padding; here both come after the text model's own tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpn.data.conversation import IMAGE, ROUTER

#: Our names of the two tables.
TABLES = ("language.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Rows:
    """Where the rows of a table come from.

    Attributes:
        sources: per row, its row in the source; None for a new token.
        new: the tokens of the new rows.
        unused: rows of the source that no token here claims.
    """

    sources: tuple[int | None, ...]
    new: tuple[str, ...] = ()
    unused: int = 0

    def take(self, table: Tensor) -> Tensor:
        """The rows of `[old, D]` as `[new, D]`; a new row is the mean of those taken."""
        if self.sources == tuple(range(len(table))):
            return table
        taken = table[[row for row in self.sources if row is not None]]
        mean = taken.mean(0, dtype=torch.float32).to(table.dtype)
        is_new = torch.tensor([row is None for row in self.sources])
        full = table.new_empty(len(self.sources), table.shape[1])
        full[~is_new] = taken
        full[is_new] = mean
        return full

    def note(self) -> str:
        """What happened, in words; empty if every row stays in its place."""
        kept = [row for row in self.sources if row is not None]
        moved = sum(row != place for place, row in enumerate(self.sources) if row is not None)
        if len(kept) == len(self.sources) and not moved and not self.unused:
            return ""
        new = f"; new, as the mean of these: {', '.join(self.new)}" if self.new else ""
        return (
            f"vocabulary: {len(kept)} rows follow their tokens, {moved} of them to another"
            f" place{new}; {self.unused} rows of the source have no token here"
        )


def match_rows(
    old: int,
    new: int,
    old_tokens: Mapping[str, int] | None,
    new_tokens: Mapping[str, int] | None,
) -> Rows:
    """Find the source of each row.

    Args:
        old: rows of the source's table.
        new: rows of the table here.
        old_tokens: the source's vocabulary, if it brings one.
        new_tokens: the vocabulary here, if it is known.

    Raises:
        ValueError: if the tokens of rows that differ in number are unknown, or the vocabularies
            share no token.
    """
    if new_tokens is None or old_tokens is None:
        own = [new_tokens[t] for t in (IMAGE, ROUTER) if t in new_tokens] if new_tokens else []
        if old == new:
            return Rows(tuple(range(new)))
        if not own or old > min(own):
            raise ValueError(
                f"The source has {old} vocabulary rows and the model {new}, and without both"
                " tokenizers nobody knows which is which; put the source's tokenizer files beside"
                " its weights."
            )
        old_tokens = {t: i for t, i in (new_tokens or {}).items() if i < old}
    names = {i: token for token, i in (new_tokens or {}).items()}
    rows = [old_tokens.get(names[i]) if i in names else None for i in range(new)]
    sources = tuple(row if row is not None and row < old else None for row in rows)
    taken = {row for row in sources if row is not None}
    if not taken:
        raise ValueError(
            "The source's tokenizer and the model's have no token in common; take the tokenizer of"
            " the source."
        )
    missing = [i for i, row in enumerate(sources) if row is None]
    return Rows(sources, tuple(names.get(i, f"row {i}") for i in missing), old - len(taken))
