"""MMBench: twenty abilities, each question asked again with turned options. (arXiv 2307.06281)"""

from pathlib import Path

from dpn.benchmarks._mmbench import MMBenchTable
from dpn.benchmarks.base import LETTER


class MMBench(MMBenchTable):
    """Choices of up to four, in English.

    The server scores `<split>.xlsx`. Of a table with answers, as that of the dev split, an estimate
    is made here: a question is right if it is right with its options in all orders that were asked.

    Metrics: accuracy of the estimate, of all and of each l2-category; vanilla_accuracy counts each
    order for itself.

    Args:
        root: see `Benchmark`.
        split: name of the table without `.tsv`.
        all_rounds: ask each row once for each way to turn its options round; LLaVA does not, its
            table holds the turned copies already.
    """

    folder = "mmbench"
    suffix = LETTER

    def __init__(self, root: Path, split: str = "mmbench_dev_20230712", all_rounds: bool = False):
        super().__init__(root, split, all_rounds)
