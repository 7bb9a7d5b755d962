"""Train, evaluate and save one run: accelerate launch launch/train_multitask.py --config X [key=value ...]

Exit code 75: a SIGTERM or SIGUSR1 ended the run early, its state is saved; the same command with --resume auto goes on.
"""

import argparse
import sys
from pathlib import Path

from multitask_vl.config import load
from multitask_vl.errors import exits_cleanly
from multitask_vl.training.preemption import EXIT_RUN_AGAIN, Interrupted, interruptible


@exits_cleanly
def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a YAML file; see configs/")
    parser.add_argument(
        "--resume",
        metavar="auto|CHECKPOINT",
        help="training.resume: auto goes on where there is something, else starts",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.lr=3e-4 routing.function=mul")
    args = parser.parse_intermixed_args()
    overrides = args.overrides + ([f"training.resume={args.resume}"] if args.resume else [])
    try:
        with interruptible() as interruption:
            loaded = load(args.config, overrides)
            # after the configuration is known to be good: the heavy libraries take seconds to import
            from multitask_vl.training.loop import train

            train(loaded, interruption)
    except Interrupted as stopped:
        if str(stopped):
            print(stopped, file=sys.stderr)
        return EXIT_RUN_AGAIN
    return None


if __name__ == "__main__":
    raise SystemExit(main())
