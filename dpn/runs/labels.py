"""Labels of runs that stand beside each other: what differs between their settings."""

from collections.abc import Collection, Sequence

from dpn.runs.path import key_of

#: Sections whose overrides name a method.
METHOD = ("router", "projector", "loss", "stage", "init")
#: Most letters of a value in a label, and how many of them are from its end.
_LETTERS, _END = 48, 16


def labels(commands: Sequence[Sequence[str]]) -> list[str]:
    """Return a label for each command; `default` if nothing is left to name.

    A label holds the overrides that not all commands have; for a single command, those that name a
    method. Their values are shortened by `short_values`, so different commands keep different
    labels.

    Args:
        commands: Overrides of each command, in the order in which the label names them.
    """
    if len(commands) > 1:
        everywhere = set.intersection(*map(set, commands))
        left = [[word for word in words if word not in everywhere] for words in commands]
    else:
        left = [[w for w in words if _section(w) in METHOD] for words in commands]
    values: dict[str, set[str]] = {}
    for key, _, value in (word.partition("=") for words in left for word in words):
        values.setdefault(key, set()).add(value)
    short = {key: short_values(known) for key, known in values.items()}
    pairs = ([word.partition("=") for word in words] for words in left)
    named = (" ".join(f"{k}{sign}{short[k][v]}" for k, sign, v in words) for words in pairs)
    return [label or "default" for label in named]


def short_values(values: Collection[str]) -> dict[str, str]:
    """Return a short form of each value of a setting; different values keep different forms.

    Of paths, only as many of the last parts are kept as tell them apart; of other long texts, an
    ellipsis replaces the middle.
    """
    for count in range(1, 1 + max((value.count("/") for value in values), default=0)):
        tails = {value: _tail(value, count) for value in values}
        if len(set(tails.values())) == len(tails):
            break
    else:
        tails = {value: value for value in values}
    cut = {value: _cut(tail) for value, tail in tails.items()}
    return cut if len(set(cut.values())) == len(cut) else tails


def _section(override: str) -> str:
    """The section or the group of an override; words that set nothing name a method."""
    return key_of(override).partition(".")[0] if "=" in override else METHOD[0]


def _tail(value: str, count: int) -> str:
    """The last parts of a path; other values as they are."""
    if set(value) & set("[]{}, "):
        return value
    return "/".join(value.rstrip("/").split("/")[-count:]) or value


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - _END - 1]}…{text[-_END:]}"
