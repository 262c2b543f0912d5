"""Whether a training run fits into a GPU, and what would make it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dpn.measure.footprint import Rehearsal, Setup
from dpn.metrics.memory import GIB

#: Trainers that share out most, to offer where a run does not fit.
SHARING: dict[str, str] = {"fsdp2": "trainer=fsdp2", "zero3": "trainer=deepspeed_zero3"}
Trial = tuple[str, Setup]


def verdict(
    rehearsal: Rehearsal,
    setup: Setup,
    texts: Mapping[str, int],
    memory_gib: float,
    global_batch: int | None = None,
) -> str:
    """Whether the batch that needs most fits into a GPU; if not, what would make it, in a sentence.

    Args:
        rehearsal: of the run.
        setup: how it is spread over GPUs.
        texts: text tokens of each sample of a batch, by what the samples are called.
        memory_gib: of a GPU.
        global_batch: samples of a step, where they stay whatever the setup is.
    """
    sizes = {name: rehearsal.memory(setup, text).total for name, text in texts.items()}
    samples = max(reversed(sizes), key=sizes.__getitem__)
    text, longest = texts[samples], max(texts.values())

    def needs(trial: Setup) -> float:
        return rehearsal.memory(trial, text).total / GIB

    def fits(trial: Setup) -> bool:
        if not rehearsal.samples(trial, longest):
            return False  # a run would refuse that sample
        held = sum(rehearsal.held(trial).values()) / GIB  # costs nothing to know
        return held <= memory_gib and needs(trial) <= memory_gib

    need = needs(setup)
    if need <= memory_gib:
        return f"It fits: {need:.1f} of {memory_gib:.0f} GiB per GPU for a batch of {samples}."
    found = []
    for kind in (smaller(setup), sharing(setup), more(setup, global_batch)):
        first = next(((words, trial) for words, trial in kind if fits(trial)), None)
        found += [f"{first[0]} ({needs(first[1]):.1f} GiB)"] if first else []
    ways = f"Each of these would do: {'; '.join(found)}." if found else "Take a smaller model."
    return (
        f"It does not fit: a batch of {samples} needs {need:.1f} GiB per GPU, there are"
        f" {memory_gib:.0f}. {ways}"
    )


def smaller(setup: Setup) -> Iterator[Trial]:
    """Halves of the micro-batch; the window gets longer, so the global batch stays."""
    key = "batch_size" if setup.rows_per_batch is None else "rows_per_batch"
    size = getattr(setup, key)
    while size % 2 == 0:
        size //= 2
        yield f"data.{key}={size}", replace(setup, **{key: size})


def sharing(setup: Setup) -> Iterator[Trial]:
    """Engines that share out everything, then with smaller micro-batches."""
    for engine, words in SHARING.items():
        if engine != setup.engine:
            yield words, replace(setup, engine=engine)
    for engine, words in SHARING.items():
        if engine != setup.engine:
            for more_words, trial in smaller(replace(setup, engine=engine)):
                yield f"{words} {more_words}", trial


def more(setup: Setup, global_batch: int | None) -> Iterator[Trial]:
    """Twice as many GPUs, and so on, for engines that share out; the global batch stays."""
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
