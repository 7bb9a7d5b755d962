"""What does ``python -m multitask_vl.reports RUN`` do: write RUN/report.html."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.reports.page import ITEMS, write_report
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
    parser.add_argument("--split", help="split of the gallery (default: the first final one)")
    options = parser.parse_args(arguments)
    if options.items < 0:
        raise InputError(f"--items: got {options.items}; give 0 or more")
    page = write_report(options.run, options.control, options.out, options.items, options.split, options.images)
    print(f"report: {page}\n\n{score_table(options.run, options.control)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
