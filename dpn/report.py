"""Make report.md and the figures of a run again, and print its tables.

python -m dpn.report run=outputs/main/default-0123abcd
"""

import sys
from pathlib import Path

from dpn.launch import read_arguments, readable_errors
from dpn.reports.page import print_tables, write_report


def report(run: str) -> Path:
    """Write the report of a run folder, or of one below its `eval`, and return its page."""
    page = write_report(Path(run))
    print_tables(Path(run))
    return page


def main() -> None:
    """Command line of `python -m dpn.report`."""
    with readable_errors():
        report(**read_arguments(report, sys.argv[1:]))


if __name__ == "__main__":
    main()
