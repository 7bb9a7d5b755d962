"""Compare runs on one page: python launch/compare.py RUN RUN ... [--out FILE] [--format html|markdown|latex|csv]

The first run is what the others are compared with, example by example. They need not have the same tasks or splits.
Tables of papers come from the same source: --format markdown, latex or csv, --table to choose some.
"""

import argparse
from pathlib import Path

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.storage.atomic import write_whole

PAGE = Path("comparison.html")


@exits_cleanly
def main() -> None:
    from multitask_vl.reports.compare import TABLES, compared, comparison_page, tables_of
    from multitask_vl.reports.html import write_page
    from multitask_vl.reports.page import ITEMS
    from multitask_vl.reports.run import read_run
    from multitask_vl.reports.table import render

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"default: {PAGE} for a page, else what is printed")
    parser.add_argument("--format", choices=("html", "markdown", "latex", "csv"), default="html")
    parser.add_argument("--table", action="append", choices=TABLES, help="repeatable (default: all; csv takes one)")
    parser.add_argument("--split", help="the only split to look at (default: all that the runs report)")
    parser.add_argument("--items", type=int, default=ITEMS, help="gallery examples a task (default: %(default)s)")
    parser.add_argument(
        "--images", type=Path, action="append", default=[], metavar="DIR", help="look for pictures here first"
    )
    args = parser.parse_args()
    if args.items < 0:
        raise InputError(f"--items: got {args.items}; give 0 or more")
    if args.format == "html" and args.table:
        raise InputError("--table: a page has them all; add --format markdown, latex or csv")
    chosen = args.table or TABLES
    if args.format == "csv" and len(chosen) != 1:
        raise InputError(f"--format csv writes one table; add --table with one of {', '.join(TABLES)}")
    found = compared([read_run(folder) for folder in args.runs], args.split)
    if args.format == "html":
        print(f"comparison: {write_page(args.out or PAGE, comparison_page(found, args.items, args.images))}")
        return
    written = tables_of(found)
    some = [table for name in chosen for table in written[name]]
    if not some:
        raise InputError(f"--table {chosen[0]}: there is none for these runs")
    if args.format == "csv" and len(some) > 1:
        raise InputError(f"--table {chosen[0]}: one for each of {', '.join(found.splits)}; choose one by --split")
    text = "\n\n".join(render(table, args.format) for table in some)
    if args.out is None:
        print(text)
        return
    if not args.out.parent.is_dir():
        raise InputError(f"{args.out}: its folder does not exist. Run: mkdir -p {args.out.parent}")
    write_whole(args.out, text + "\n")
    print(f"comparison: {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
