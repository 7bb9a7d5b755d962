"""Compare runs on one page.

    multitask-vl compare RUN RUN ... --out comparison.html

The other runs are compared with the first one, example by example. They need not have the same tasks or splits.
Tables for papers come from the same source: --format markdown, latex or csv, and --table to choose some.
--average-seeds prints one table instead: scores as mean and standard deviation over runs that differ only in the seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.reports.options import COMPARISON_TABLES, GALLERY_ITEMS, PAGE_FORMATS, TABLE_FORMATS

PAGE = Path("comparison.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"file to write (default: {PAGE} for a page; tables are printed)"
    )
    parser.add_argument(
        "--format",
        choices=dict.fromkeys((*PAGE_FORMATS, *TABLE_FORMATS)),
        help="html: a page (default); else tables; text: with --average-seeds (its default)",
    )
    parser.add_argument(
        "--table", action="append", choices=COMPARISON_TABLES, help="table, repeatable (default: all; csv takes one)"
    )
    parser.add_argument("--average-seeds", action="store_true", help="print mean and standard deviation over seeds")
    parser.add_argument("--split", help="the only split to compare (default: all that the runs report)")
    parser.add_argument(
        "--items", type=int, default=GALLERY_ITEMS, help="gallery examples per task (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=Path, action="append", default=[], metavar="DIR", help="folder to search for images first"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.items < 0:
        raise InputError(f"--items: got {args.items}; must be 0 or more")
    if args.average_seeds:
        _write(args.out, average_seeds(args.runs, args.format or "text", args.split))
        return
    args.format = args.format or "html"
    if args.format == "text":
        raise InputError("--format text: only with --average-seeds; choose html, markdown, latex or csv")
    if args.format == "html" and args.table:
        raise InputError("--table: the page has them all; add --format markdown, latex or csv")
    if args.format == "csv" and len(args.table or COMPARISON_TABLES) != 1:
        raise InputError(f"--format csv writes one table; add --table with one of {', '.join(COMPARISON_TABLES)}")
    from multitask_vl.reports.compare import compare_runs, comparison_page
    from multitask_vl.reports.html import write_page
    from multitask_vl.reports.run import read_run

    comparison = compare_runs([read_run(folder) for folder in args.runs], args.split)
    if args.format == "html":
        print(f"comparison: {write_page(args.out or PAGE, comparison_page(comparison, args.items, args.images))}")
        return
    _write(args.out, _tables(comparison, args))


def average_seeds(folders: list[Path], form: str, split: str | None = None) -> str:
    """A table of scores as mean and standard deviation over runs that differ only in the seed.

    Args:
        form: one of `TABLE_FORMATS`.
        split: None: the first final split of the first run.
    """
    if form not in TABLE_FORMATS:
        raise InputError(f"--average-seeds prints a table; choose --format {', '.join(TABLE_FORMATS)}")
    from multitask_vl.reports.run import read_run
    from multitask_vl.reports.table import render
    from multitask_vl.reports.tables import seed_table

    return render(seed_table([read_run(folder) for folder in folders], split), form)


def _tables(comparison, args: argparse.Namespace) -> str:
    from multitask_vl.reports.compare import comparison_tables
    from multitask_vl.reports.table import render

    names, tables = args.table or COMPARISON_TABLES, comparison_tables(comparison)
    selected = [table for name in names for table in tables[name]]
    if not selected:
        raise InputError(f"--table {names[0]}: these runs have none")
    if args.format == "csv" and len(selected) > 1:
        raise InputError(
            f"--table {names[0]}: there is one for each of {', '.join(comparison.splits)}; choose one with --split"
        )
    return "\n\n".join(render(table, args.format) for table in selected)


def _write(out: Path | None, text: str) -> None:
    from multitask_vl.storage.atomic import atomic_write

    if out is None:
        print(text)
        return
    if not out.parent.is_dir():
        raise InputError(f"{out}: its folder does not exist. Run: mkdir -p {out.parent}")
    atomic_write(out, text + "\n")
    print(f"comparison: {out}")
