"""MMBench-CN: MMBench in Chinese. (arXiv 2307.06281)"""

from pathlib import Path

from dpn.benchmarks._mmbench import MMBenchTable


class MMBenchCN(MMBenchTable):
    """The questions of MMBench, translated; see `dpn.benchmarks.mmbench`.

    Args:
        root: see `Benchmark`.
        split: name of the table without `.tsv`.
        all_rounds: ask each row once for each way to turn its options round.
    """

    folder = "mmbench_cn"
    suffix = "\n请直接回答选项字母。"

    def __init__(
        self, root: Path, split: str = "mmbench_dev_cn_20231003", all_rounds: bool = False
    ):
        super().__init__(root, split, all_rounds)
