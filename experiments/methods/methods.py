"""Methods of the study, their targets and their runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    free: bool = True
    trained: tuple[str, ...] | None = TUNED
    start: tuple[str, ...] = ("init.model={base}",)
    own: tuple[str, ...] = ()
    keeps: tuple[float | None, ...] = KEEPS


#: Only the gates are trained.
_GATES = ("stage=gates", "trainer.max_steps=60", "router.hidden=96")
#: What `tools/search.py` makes of the base.
_SCORES = ("router.scores={base}/head_scores.json",)
_RANKING = ("router.ranking={base}/layer_ranking.json",)
#: All parts but the projector.
_NEW = ("init.language={base}", "init.vision={base}")
_BETWEEN, _BEFORE, _WITHIN = "between layers", "before the decoder", "within layers"
METHODS = {
    "none": Method("router", "nowhere", keeps=(None,)),
    "random": Method("router", _BETWEEN),
    "static": Method("router", _BETWEEN),
    "dpe": Method("router", _BETWEEN, free=False),
    "fastv": Method("router", _BETWEEN, trained=None),
    "pyramid_drop": Method("router", _BETWEEN),
    "sparsevlm": Method("router", _BETWEEN, trained=None),
    "vtw": Method("router", _BETWEEN, trained=None),
    "aim": Method("router", _BETWEEN, trained=None),
    "dyvte": Method("router", _BETWEEN, free=False, trained=_GATES),
    "layer_drop": Method("router", _WITHIN),
    "neighbor_attention": Method("router", _WITHIN, keeps=(None,)),
    "head_pruning": Method("router", _WITHIN, own=_SCORES, keeps=(*KEEPS, MORE)),
    "sparse_ffn": Method("router", _WITHIN),
    "yopo": Method("router", _WITHIN, own=_SCORES),
    "redundancy_lens": Method("router", _WITHIN, trained=None, own=_RANKING),
    "depth_routing": Method("router", _WITHIN, free=False),
    "random (projector)": Method("projector", _BEFORE),
    "downsample": Method("projector", _BEFORE),
    "pooled": Method("projector", _BEFORE),
    "divprune": Method("projector", _BEFORE, trained=None),
    "visionzip": Method("projector", _BEFORE, trained=None),
    "prumerge": Method("projector", _BEFORE),
    "prumerge_plus": Method("projector", _BEFORE),
    "dfmr": Method("projector", _BEFORE),
    "matryoshka_pool": Method("projector", _BEFORE),
    "matryoshka_query": Method(
        "projector", _BEFORE, free=False, start=_NEW, own=("projector.queries=64",)
    ),
    "token_packer": Method("projector", _BEFORE, free=False, start=_NEW),
    "query_conv": Method("projector", _BEFORE, free=False, start=_NEW),
    "dense_connector": Method(
        "projector", "before it, no compression", free=False, start=_NEW, keeps=(None,)
    ),
}


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
