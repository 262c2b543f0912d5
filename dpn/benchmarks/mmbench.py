"""MMBench: twenty abilities, each question repeated with rotated options (arXiv 2307.06281)."""

from pathlib import Path

from dpn.benchmarks._mmbench import MMBenchTable
from dpn.benchmarks.base import LETTER


class MMBench(MMBenchTable):
    """MMBench in English, with up to four options per question.

    The official score comes from the server, which takes `<split>.xlsx`. If the table contains
    answers, as in the dev split, an estimate is computed locally: a question is correct if it is
    answered correctly in every order of its options that was asked.

    Metrics: accuracy (estimate), overall and per l2-category; vanilla_accuracy counts each order
    separately.

    Args:
        root: Root folder of all benchmarks, see `Benchmark`.
        split: Name of the table without `.tsv`.
        all_rounds: Whether to ask each row once per rotation of its options; LLaVA does not, since
            its table already contains the rotated copies.
    """

    folder = "mmbench"
    suffix = LETTER

    def __init__(self, root: Path, split: str = "mmbench_dev_20230712", all_rounds: bool = False):
        super().__init__(root, split, all_rounds)
