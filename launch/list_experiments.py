"""List what can be reproduced and what was published for it: python launch/list_experiments.py [--write docs/recipes.md]"""

import argparse
from pathlib import Path

from multitask_vl.errors import exits_cleanly

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables between the markers of this file")
    args = parser.parse_args()
    from multitask_vl.reproduction import experiments
    from multitask_vl.reproduction.parameters import put_between_markers

    found = experiments.read_recipes(CONFIGS)
    tables = experiments.as_markdown(found)
    if args.write:
        put_between_markers(args.write, f"\n{tables}\n", experiments.NAME, "--write")
        print(f"{len(found)} recipes written between the markers of {args.write}")
    else:
        print(tables)


if __name__ == "__main__":
    raise SystemExit(main())
