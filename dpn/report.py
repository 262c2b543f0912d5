"""Write the report of one run, or one page that compares many runs.

python -m dpn.report run=outputs/main/default-0123abcd   # its report.md and figures again
python -m dpn.report outputs/                            # report.html of all runs in a folder
python -m dpn.report outputs/main/a-* outputs/b to=FOLDER
"""

# Functions import what draws, so that `--help` and a misspelt name are answered before.

import re
import sys
from dataclasses import replace
from pathlib import Path

from dpn.cli.arguments import read_arguments
from dpn.cli.errors import readable_errors
from dpn.cli.help import asks_for_help, help_of_function
from dpn.common import early_stop
from dpn.runs.request import ConfigError


def report(run: str) -> Path:
    """Write the report of one run, and return its page.

    Args:
        run: Run folder, or one of its `eval` folders.
    """
    from dpn.reports.page import print_tables, write_report

    early_stop.imported()
    page = write_report(Path(run))
    print_tables(Path(run))
    return page


def report_all(*folders: str, to: str | None = None) -> Path:
    """Write one report that compares all runs in some folders, and return its page.

    Args:
        folders: Run folders, or folders with runs at any depth.
        to: Folder of the report; by default `report` in the first folder.
    """
    from dpn.common.table import terminal
    from dpn.reports.comparison import compare
    from dpn.reports.comparison_tables import left_out, methods
    from dpn.reports.publish import write_comparison

    early_stop.imported()
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
    arguments = sys.argv[1:]
    if asks_for_help(arguments):
        print(help_of_function(report, report_all))
        return
    with readable_errors():
        named = [argument for argument in arguments if re.match(r"\w+=", argument)]
        folders = [argument for argument in arguments if argument not in named]
        if flags := [folder for folder in folders if folder.startswith("-")]:
            raise ConfigError([f"`{flag}` is not an argument; see --help." for flag in flags])
        if folders:
            report_all(*folders, **read_arguments(report_all, named))
        elif named:
            report(**read_arguments(report, named))
        else:
            raise ConfigError(["there is nothing to report; give run=RUN, or folders with runs."])


if __name__ == "__main__":
    main()
