"""Whether a training run fits into a GPU and, if not, which settings would make it fit."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dpn.measure.footprint import Rehearsal, Setup
from dpn.metrics.memory import GIB

#: Trainers that shard everything, to suggest where a run does not fit.
SHARDED: dict[str, str] = {"fsdp2": "trainer=fsdp2", "zero3": "trainer=deepspeed_zero3"}
Trial = tuple[str, Setup]


def verdict(
    rehearsal: Rehearsal,
    setup: Setup,
    texts: Mapping[str, int],
    memory_gib: float,
    global_batch: int | None = None,
) -> str:
    """A sentence: whether the largest batch fits into a GPU and, if not, what would make it fit.

    Args:
        rehearsal: Rehearsal of the run.
        setup: Engine, precision and number of GPUs.
        texts: Text tokens of each sample of a batch, by the name of the batch.
        memory_gib: Memory of a GPU.
        global_batch: Samples of a step, if their number is fixed.
    """
    sizes = {name: rehearsal.memory(setup, text).total for name, text in texts.items()}
    samples = max(reversed(sizes), key=sizes.__getitem__)
    text, longest = texts[samples], max(texts.values())

    def needs(trial: Setup) -> float:
        return rehearsal.memory(trial, text).total / GIB

    def fits(trial: Setup) -> bool:
        if not rehearsal.samples(trial, longest):
            return False  # training would refuse that sample
        held = sum(rehearsal.held(trial).values()) / GIB  # costs nothing to know
        return held <= memory_gib and needs(trial) <= memory_gib

    need = needs(setup)
    if need <= memory_gib:
        return f"It fits: {need:.1f} of {memory_gib:.0f} GiB per GPU for a batch of {samples}."
    found = []
    for kind in (smaller(setup), sharded(setup), more(setup, global_batch)):
        first = next(((words, trial) for words, trial in kind if fits(trial)), None)
        found += [f"{first[0]} ({needs(first[1]):.1f} GiB)"] if first else []
    ways = f"Each of these would do: {'; '.join(found)}." if found else "Take a smaller model."
    return (
        f"It does not fit: a batch of {samples} needs {need:.1f} GiB per GPU, there are"
        f" {memory_gib:.0f}. {ways}"
    )


def smaller(setup: Setup) -> Iterator[Trial]:
    """Setups with smaller micro-batches; more of them make a step, so the global batch stays."""
    key = "batch_size" if setup.rows_per_batch is None else "rows_per_batch"
    size = getattr(setup, key)
    while size % 2 == 0:
        size //= 2
        yield f"data.{key}={size}", replace(setup, **{key: size})


def sharded(setup: Setup) -> Iterator[Trial]:
    """Setups with engines that shard everything, then also with smaller micro-batches."""
    for engine, words in SHARDED.items():
        if engine != setup.engine:
            yield words, replace(setup, engine=engine)
    for engine, words in SHARDED.items():
        if engine != setup.engine:
            for more_words, trial in smaller(replace(setup, engine=engine)):
                yield f"{words} {more_words}", trial


def more(setup: Setup, global_batch: int | None) -> Iterator[Trial]:
    """Setups with 2 to 16 times as many GPUs and a sharding engine; the global batch stays."""
    engine, words = setup.engine, ""
    if engine in ("single", "ddp"):
        engine, words = "fsdp2", " with trainer=fsdp2"
    for factor in (2, 4, 8, 16):
        count, size = setup.processes * factor, setup.batch_size
        while global_batch is not None and global_batch % (size * count) and size % 2 == 0:
            size //= 2
        if global_batch is not None and global_batch % (size * count):
            return
        batch = "" if size == setup.batch_size else f" data.batch_size={size}"
        trial = replace(setup, engine=engine, processes=count, batch_size=size)
        yield f"{count} GPUs{words}{batch}", trial
