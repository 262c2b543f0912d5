"""Compare the speed of answering held-out questions in batches of 16 and one at a time.

    python experiments/evaluation/batching.py run=RUN    # appends to results.jsonl

Both answer the same questions in turn in one process, greedily, including image transforms.
"""

import json
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from dpn import inference
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.config import build
from dpn.data.rows import Questions
from dpn.inference.questions import answer_all
from dpn.metrics.speed import compare
from dpn.runs.commit import commit

HERE = Path(__file__).parent


def batching(run: str, questions: int = 96, batch: int = 16, pairs: int = 20) -> dict[str, object]:
    """Measure both.

    Args:
        run: Folder of a finished run.
        questions: Number of held-out questions, evenly spread over the families.
        batch: Size of the larger batch.
        pairs: Number of measured pairs.
    """
    model, processor = inference.load(Path(run))
    source = build.data_module(OmegaConf.load(Path(run) / "config.yaml").data)
    source.prepare_data()
    chosen = Spread(Questions(source.source.split("val"), processor), questions)

    def ask(size: int) -> None:
        answer_all(model, processor, chosen, f"batch of {size}", size, max_new_tokens=64)

    ratio = compare(lambda: ask(batch), lambda: ask(1), pairs)
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "batch": batch,
        "questions": len(chosen),
        "threads": torch.get_num_threads(),
        "times_faster": 1 / ratio.ratio,
        "interval": [1 / ratio.high, 1 / ratio.low],
        "samples_per_s": [1e3 * len(chosen) / ms for ms in (ratio.candidate_ms, ratio.baseline_ms)],
    }


class Spread:
    """Evenly spread questions of a question set."""

    def __init__(self, whole: Questions, count: int):
        self.whole, self.places = whole, range(0, len(whole), max(1, len(whole) // count))[:count]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> list[int]:
        return [self.whole.lengths[place] for place in self.places]

    def make(self, index: int):
        return self.whole.make(self.places[index])

    def where(self, index: int) -> str:
        return self.whole.where(self.places[index])


if __name__ == "__main__":
    with readable_errors():
        found = batching(**read_arguments(batching, sys.argv[1:]))
        print(json.dumps(found, indent=2))
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
