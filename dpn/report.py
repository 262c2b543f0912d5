"""Write the report of one run, or one page that compares many runs.

python -m dpn.report run=outputs/main/default-0123abcd   # its report.md and figures again
python -m dpn.report outputs/                            # report.html of all runs in a folder
python -m dpn.report outputs/main/a-* outputs/b to=FOLDER
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.common.table import terminal
from dpn.reports.comparison import compare
from dpn.reports.comparison_tables import left_out, methods
from dpn.reports.page import print_tables, write_report
from dpn.reports.publish import write_comparison
from dpn.runs.request import ConfigError


def report(run: str) -> Path:
    """Write the report of a run folder or of one of its `eval` folders, and return its page."""
    page = write_report(Path(run))
    print_tables(Path(run))
    return page


def report_all(*folders: str, to: str | None = None) -> Path:
    """Write one report that compares all runs in some folders, and return its page.

    Args:
        folders: Run folders, or folders with runs at any depth.
        to: Folder of the report; defaults to `report` in the first folder.
    """
    found = compare([Path(folder) for folder in folders])
    page = write_comparison(found, Path(to) if to else Path(folders[0]) / "report")
    console = terminal()
    for data_set in found.data_sets:
        table = methods(data_set.points)
        replace(table, title=data_set.title(table.title)).show(console)
    if found.left_out:
        left_out(found.left_out).show(console)
    console.print(f"Report: {page}", soft_wrap=True)
    return page


def main() -> None:
    """Command line of `python -m dpn.report`."""
    with readable_errors():
        named = [argument for argument in sys.argv[1:] if re.match(r"\w+=", argument)]
        if folders := [argument for argument in sys.argv[1:] if argument not in named]:
            report_all(*folders, **read_arguments(report_all, named))
        elif named:
            report(**read_arguments(report, named))
        else:
            raise ConfigError(["there is nothing to report; give run=RUN, or folders with runs."])


if __name__ == "__main__":
    main()
