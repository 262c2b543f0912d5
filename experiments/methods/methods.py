"""Methods of the study, their targets and their runs.

A new router or projector is included according to the facts on its class, see `dpn.routers.Router`
and `dpn.projectors.Projector`. `OWN` has only what this study does differently for some methods.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpn import projectors, routers
from dpn.config.compose import compose
from dpn.runs.path import run_path

KEEPS = (0.5, 0.25, 0.75)
#: A ratio that `head_pruning` can reach.
MORE = 0.8
#: Seeds by target: three at 0.5, otherwise one.
SEEDS = {0.5: (0, 1, 2)}
#: 60 steps after the 400 of the base run, at half of its learning rates.
TUNED = ("stage=finetune", "trainer.max_steps=60", "optim.lr=0.01", "optim.other_lr=5e-4")


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        part: `router` or `projector`.
        acts: Where it acts.
        free: Whether it works on a model that was trained without it.
        trained: Overrides for training; None if it is never trained.
        start: Initial weights for training; a new kind of projector only takes the other parts.
        own: Further overrides; `{base}` is the run it starts from.
        keeps: Targets of the visual MACs ratio; None for methods without one.
    """

    part: str
    acts: str
    free: bool
    trained: tuple[str, ...] | None
    start: tuple[str, ...]
    own: tuple[str, ...]
    keeps: tuple[float | None, ...]


#: The control run has this projector; a chain consists of other methods.
LEFT_OUT = ("mlp", "chain")
OWN: Mapping[str, Mapping[str, Any]] = {
    # Only the gates are trained.
    "dyvte": {"trained": ("stage=gates", "trainer.max_steps=60", "router.hidden=96")},
    "neighbor_attention": {"keeps": (None,)},  # its share is always near 1
    "head_pruning": {"keeps": (*KEEPS, MORE)},
    "matryoshka_query": {"own": ("projector.queries=64",)},  # as many as there are tokens
}


def _method(part: str, name: str, kind: Any) -> Method:
    """Build a line of the table from the facts on a class and `OWN`."""
    is_new = part == "projector" and kind.own_weights
    start = ("init.language={base}", "init.vision={base}") if is_new else ("init.model={base}",)
    files = getattr(kind, "files", {})  # output of `tools/search.py` for the base run
    settings: dict[str, Any] = {
        "free": not kind.own_weights,
        "trained": TUNED if kind.trainable else None,
        "start": start,
        "own": tuple(f"{part}.{key}={{base}}/{file}" for key, file in files.items()),
        "keeps": (None,) if kind.meets_keep == "never" else KEEPS,
    }
    return Method(part, kind.acts, **settings | OWN.get(name, {}))


def _methods() -> dict[str, Method]:
    """Collect all methods, ordered by where they act."""
    found = {}
    for part, family in (("router", routers), ("projector", projectors)):
        for name in family.names():
            if name not in LEFT_OUT:
                taken = name in found
                kind = family.resolve(name)
                found[f"{name} ({part})" if taken else name] = _method(part, name, kind)
    order = ("nowhere", "between layers", "within layers")
    place = {acts: number for number, acts in enumerate(order)}
    return dict(sorted(found.items(), key=lambda item: place.get(item[1].acts, len(order))))


METHODS = _methods()


@dataclass(frozen=True)
class Job:
    """One run of a method, `applied` or `trained`, with a target and a seed."""

    method: str
    how: str
    keep: float | None
    seed: int

    @property
    def choice(self) -> list[str]:
        """Overrides for the method and its target."""
        method = METHODS[self.method]
        chosen = [f"{method.part}={self.method.split()[0]}"]
        chosen += self._based(method.own)
        if method.part == "projector":
            chosen.append("router=none")
        if self.keep is not None:
            chosen.append(f"{method.part}.keep={self.keep}")
        return chosen

    @property
    def overrides(self) -> list[str]:
        """All overrides of the run."""
        if self.how == "applied":
            return [*self.choice, "stage=apply", f"seed={self.seed}"]
        method = METHODS[self.method]
        settings = (*(method.trained or ()), *self._based(method.start))
        return [*self.choice, *settings, f"seed={self.seed}"]

    def _based(self, overrides: Sequence[str]) -> list[str]:
        return [o.format(base=base(self.seed)) for o in overrides]


def base(seed: int) -> Path:
    """Return the folder of the run that all runs of a seed start from."""
    return run_path(compose("train", ["router=none", f"seed={seed}"]))


def jobs(names: Sequence[str], keeps: Sequence[float]) -> Iterator[Job]:
    """Yield all runs, seed by seed."""
    for seed in (0, 1, 2):
        for how in ("applied", "trained"):
            for keep in (None, *keeps):
                for name in names:
                    method = METHODS[name]
                    possible = method.free if how == "applied" else method.trained is not None
                    known = keep in method.keeps and seed in SEEDS.get(keep or 0.5, (0,))
                    if possible and known:
                        yield Job(name, how, keep, seed)
