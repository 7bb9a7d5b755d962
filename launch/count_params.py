"""Count what every method trains: python launch/count_params.py [CONFIG ...] [--markdown README.md | --json]"""

import argparse
import json
from pathlib import Path

from multitask_vl.errors import exits_cleanly

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", type=Path, help="YAML files (default: all of configs/parameters)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--markdown", type=Path, metavar="FILE", help="write the table between the markers of this file")
    how.add_argument("--json", action="store_true", help="print one JSON list")
    args = parser.parse_args()
    from multitask_vl.reproduction import parameters as tables

    files = args.configs or sorted((CONFIGS / "parameters").glob("*.yaml"))
    table = tables.rows(files, tables.read_published(CONFIGS / "published_percent.yaml"))
    if args.json:
        print(json.dumps(tables.as_json(table), indent=1))
    elif args.markdown:
        tables.put_between_markers(args.markdown, tables.as_markdown(table))
        print(f"{len(table)} rows written between the markers of {args.markdown}")
    else:
        print(tables.as_text(table))


if __name__ == "__main__":
    raise SystemExit(main())
