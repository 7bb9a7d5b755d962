"""What does ``python -m multitask_vl.reports RUN`` do: write RUN/report.html."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.reports.page import ITEMS, TABLES, tables_of_run, write_report
from multitask_vl.reports.run import read_run
from multitask_vl.reports.shuffled_control import check_control
from multitask_vl.reports.table import render
from multitask_vl.reports.tables import score_table


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> int:
    """Write a page about a run: scores, learning curves and a gallery, in one file that needs no other."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.reports", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--control", type=Path, metavar="BLIND_RUN", help="the same run with features.control=shuffled")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: RUN/report.html)")
    parser.add_argument("--items", type=int, default=ITEMS, help="gallery examples a task (default: %(default)s)")
    parser.add_argument(
        "--images", type=Path, action="append", default=[], metavar="DIR", help="look for pictures here first"
    )
    parser.add_argument(
        "--split", help="of the gallery (default: the first final one); of tables (default: all final ones)"
    )
    forms = ("html", "markdown", "latex", "csv")
    parser.add_argument("--format", choices=forms, default="html", help="the page (default), or tables, printed")
    parser.add_argument("--table", action="append", choices=TABLES, help="which (default: all; csv takes one)")
    options = parser.parse_args(arguments)
    if options.format != "html":
        print(_tables(options))
        return 0
    if options.items < 0:
        raise InputError(f"--items: got {options.items}; give 0 or more")
    page = write_report(options.run, options.control, options.out, options.items, options.split, options.images)
    print(f"report: {page}\n\n{score_table(options.run, options.control)}")
    return 0


def _tables(options: argparse.Namespace) -> str:
    """The tables that were asked for."""
    run, control = read_run(options.run), read_run(options.control) if options.control else None
    if control:
        check_control(run, control, options.split)
    found, names = tables_of_run(run, control, options.split), options.table or TABLES
    some = [table for name in names for table in found[name]]
    if not some:
        raise InputError(f"--table {names[0]}: {run.folder} has none")
    if options.format == "csv" and len(some) > 1:
        raise InputError(
            f"--format csv writes one table, these are {len(some)}; add --table with one of {', '.join(TABLES)}, and "
            f"--split with one of {', '.join(run.splits)}"
        )
    return "\n\n".join(render(table, options.format) for table in some)


if __name__ == "__main__":
    raise SystemExit(main())
