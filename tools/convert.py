"""Convert LLaVA, LLaVA-HR, DPN or Hugging Face weights to a folder that `run=` reads.

python tools/convert.py llava-v1.5-7b llava-7b --part clip-vit-large-patch14-336
python tools/convert.py RUN/checkpoints/step-0001000.ckpt llava-7b --like FOLDER_OF_OURS

The second reads a checkpoint of any trainer, also one that FSDP2 or ZeRO sharded.
"""

import argparse
import sys
from pathlib import Path

from dpn.checkpoints import convert
from dpn.cli.door import set_up_logging
from dpn.common.errors import DPNError


def main() -> None:
    """Command line of `python tools/convert.py`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="file or folder to read")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument(
        "--part",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="weights that the source lacks, e.g. a frozen vision tower; may be repeated",
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FOLDER",
        help="folder of a DPN model whose config and tokenizer belong to the source",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="folder of the model that a LoRA run started from",
    )
    arguments = parser.parse_args()
    set_up_logging()
    try:
        reports = convert(
            arguments.source, arguments.target, arguments.part, arguments.like, arguments.base
        )
    except (DPNError, OSError, ValueError) as error:
        sys.exit(f"convert.py: {error}")
    print(*reports, f"written to {arguments.target}", sep="\n")


if __name__ == "__main__":
    main()
