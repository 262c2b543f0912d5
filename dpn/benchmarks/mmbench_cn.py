"""MMBench-CN: MMBench in Chinese (arXiv 2307.06281)."""

from pathlib import Path

from dpn.benchmarks._mmbench import MMBenchTable


class MMBenchCN(MMBenchTable):
    """MMBench translated to Chinese; scored like `dpn.benchmarks.mmbench.MMBench`.

    Args:
        root: Root folder of all benchmarks, see `Benchmark`.
        split: Name of the table without `.tsv`.
        all_rounds: Whether to ask each row once per rotation of its options.
    """

    folder = "mmbench_cn"
    suffix = "\n请直接回答选项字母。"

    def __init__(
        self, root: Path, split: str = "mmbench_dev_cn_20231003", all_rounds: bool = False
    ):
        super().__init__(root, split, all_rounds)
