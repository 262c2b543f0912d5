"""Score the attention heads of a trained model on its training data, for `router=head_pruning`.

    python tools/head_scores.py run=RUN

Writes RUN/head_scores.json.
"""

import sys
from pathlib import Path

from dpn import inference
from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.common.files import write_json
from dpn.common.progress import progress
from dpn.config import build
from dpn.data.batch import DataError
from dpn.routers import head_pruning


def head_scores(run: str, samples: int = 100, device: str = "auto") -> Path:
    """Score heads and return the file.

    Args:
        run: run folder.
        samples: questions of the training data to ask; 100 in the release.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: if the training data has no images.
    """
    model, source = build.load_run(Path(run), device)
    batches = inference.training_prompts(source, model.device, samples)
    if not any("pixel_values" in batch for batch in batches):
        raise DataError(f"run={run} was trained on text alone; heads are scored on images.")
    scores = head_pruning.measure(model, progress(batches, "scoring heads"))
    path = Path(run) / "head_scores.json"
    write_json(path, {"layers": scores})
    return path


def main() -> None:
    """Command line of `python tools/head_scores.py`."""
    with readable_errors():
        path = head_scores(**read_arguments(head_scores, sys.argv[1:]))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
