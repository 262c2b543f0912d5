"""Match vocabulary entries (rows of the embedding and the head) by token, not by number.

Token 32000 is `<ROUTER>` in the released DPN models and `<image>` in Hugging Face's LLaVA, whose
tables end with padding entries; here both come after the text model's own tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpn.common.errors import FileError
from dpn.data.conversation import IMAGE, ROUTER

#: DPN names of the two tables.
TABLES = ("language.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class EntryMap:
    """Mapping from the entries of a vocabulary table to those of a source.

    Attributes:
        sources: Number of each entry in the source; None for a new token.
        new: Tokens of the new entries.
        unused: Number of entries in the source whose token the model does not have.
    """

    sources: tuple[int | None, ...]
    new: tuple[str, ...] = ()
    unused: int = 0

    def take(self, table: Tensor) -> Tensor:
        """Reorder a table `[old, D]` to `[new, D]`; a new entry is the mean of those taken."""
        if self.sources == tuple(range(len(table))):
            return table
        taken = table[[entry for entry in self.sources if entry is not None]]
        mean = taken.mean(0, dtype=torch.float32).to(table.dtype)
        is_new = torch.tensor([entry is None for entry in self.sources])
        full = table.new_empty(len(self.sources), table.shape[1])
        full[~is_new] = taken
        full[is_new] = mean
        return full

    def note(self) -> str:
        """Describe the mapping; empty if every entry stays in its place."""
        kept = [entry for entry in self.sources if entry is not None]
        moved = sum(entry != place for place, entry in enumerate(self.sources) if entry is not None)
        if len(kept) == len(self.sources) and not moved and not self.unused:
            return ""
        new = f"; new, set to the mean of these: {', '.join(self.new)}" if self.new else ""
        return (
            f"vocabulary: {len(kept)} entries matched by token, {moved} of them moved{new};"
            f" {self.unused} entries of the source are not used"
        )


def match_entries(
    old: int,
    new: int,
    old_tokens: Mapping[str, int] | None,
    new_tokens: Mapping[str, int] | None,
) -> EntryMap:
    """Match the entries of a model's vocabulary table with those of a source.

    Args:
        old: Number of entries in the source's table.
        new: Number of entries in the model's table.
        old_tokens: Vocabulary of the source, if it has one.
        new_tokens: Vocabulary of the model, if it is known.

    Raises:
        FileError: If the numbers differ and the tokens are unknown, or the vocabularies share no
            token.
    """
    if new_tokens is None or old_tokens is None:
        own = [new_tokens[t] for t in (IMAGE, ROUTER) if t in new_tokens] if new_tokens else []
        if old == new:
            return EntryMap(tuple(range(new)))
        if not own or old > min(own):
            raise FileError(
                f"The source has {old} vocabulary entries and the model {new}, and without both"
                " tokenizers they cannot be matched; put the source's tokenizer files beside its"
                " weights."
            )
        old_tokens = {t: i for t, i in (new_tokens or {}).items() if i < old}
    names = {i: token for token, i in (new_tokens or {}).items()}
    entries = [old_tokens.get(names[i]) if i in names else None for i in range(new)]
    sources = tuple(entry if entry is not None and entry < old else None for entry in entries)
    taken = {entry for entry in sources if entry is not None}
    if not taken:
        raise FileError(
            "The source's tokenizer and the model's have no token in common; use the tokenizer of"
            " the source."
        )
    missing = [i for i, entry in enumerate(sources) if entry is None]
    return EntryMap(sources, tuple(names.get(i, f"entry {i}") for i in missing), old - len(taken))
