"""Write the report page of a run: scores, learning curves and example predictions.

    multitask-vl report RUN --control SHUFFLED_RUN

The page is one HTML file that needs no other. With --format markdown, latex or csv, tables are printed instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.reports.options import GALLERY_ITEMS, PAGE_FORMATS, RUN_TABLES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--control", type=Path, metavar="RUN", help="the same run with features.shuffle_images=true, to compare with"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (default: RUN/report.html)")
    parser.add_argument(
        "--items", type=int, default=GALLERY_ITEMS, help="gallery examples per task (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=Path, action="append", default=[], metavar="DIR", help="folder to search for images first"
    )
    parser.add_argument(
        "--split", help="split of the gallery (default: the first final one) or of the tables (default: all final ones)"
    )
    parser.add_argument("--format", choices=PAGE_FORMATS, default="html", help="html: the page; else tables, printed")
    parser.add_argument(
        "--table", action="append", choices=RUN_TABLES, help="table to print, repeatable (default: all; csv takes one)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from multitask_vl.reports.page import write_report
    from multitask_vl.reports.tables import score_table_text

    if args.format != "html":
        print(_tables(args))
        return
    if args.items < 0:
        raise InputError(f"--items: got {args.items}; must be 0 or more")
    page = write_report(args.run, args.control, args.out, args.items, args.split, args.images)
    print(f"report: {page}\n\n{score_table_text(args.run, args.control)}")


def _tables(args: argparse.Namespace) -> str:
    from multitask_vl.reports.page import run_tables
    from multitask_vl.reports.run import read_run
    from multitask_vl.reports.shuffled_control import check_control
    from multitask_vl.reports.table import render

    run, control = read_run(args.run), read_run(args.control) if args.control else None
    if control:
        check_control(run, control, args.split)
    tables, names = run_tables(run, control, args.split), args.table or RUN_TABLES
    selected = [table for name in names for table in tables[name]]
    if not selected:
        raise InputError(f"--table {names[0]}: {run.folder} has none")
    if args.format == "csv" and len(selected) > 1:
        raise InputError(
            f"--format csv writes one table, got {len(selected)}; add --table with one of {', '.join(RUN_TABLES)}, and "
            f"--split with one of {', '.join(run.splits)}"
        )
    return "\n\n".join(render(table, args.format) for table in selected)
