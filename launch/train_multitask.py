"""Train, evaluate and save one run: accelerate launch launch/train_multitask.py --config X [key=value ...]"""

import argparse
from pathlib import Path

from multitask_vl.config import load
from multitask_vl.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.lr=3e-4 routing.function=mul")
    args = parser.parse_args()
    loaded = load(args.config, args.overrides)
    # after the configuration is known to be good: the heavy libraries take seconds to import
    from multitask_vl.training.loop import train

    train(loaded)


if __name__ == "__main__":
    raise SystemExit(main())
