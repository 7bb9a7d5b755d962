"""Train, evaluate and save one run.

Give the configuration, then overrides: --config configs/examples/quickstart.yaml training.lr=3e-4
On several processes: accelerate launch -m multitask_vl train --config CONFIG, or launch/train_multitask.py.

Exit codes: 0 done; 1 crashed; 2 bad input; 75 SIGTERM or SIGUSR1 ended the run early and its state is saved: the same
command with --resume auto continues it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from multitask_vl.errors import EXIT_PREEMPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--config", type=Path, required=True, help="YAML file, such as those in configs/")
    parser.add_argument(
        "--resume",
        metavar="auto|CHECKPOINT",
        help="checkpoint to resume from; auto: the latest one of the run, or start from scratch if there is none",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides, such as training.lr=3e-4 routing.function=mul"
    )


def run(args: argparse.Namespace) -> int | None:
    """Run the command; returns the exit code."""
    from multitask_vl.config import load
    from multitask_vl.training.preemption import Interrupted, handle_signals

    overrides = args.overrides + ([f"training.resume={args.resume}"] if args.resume else [])
    try:
        with handle_signals() as interruption:
            loaded = load(args.config, overrides)
            # after the configuration is known to be valid, since this takes seconds
            from multitask_vl.training.loop import train

            train(loaded, interruption)
    except Interrupted as interrupted:
        if str(interrupted):
            print(interrupted, file=sys.stderr)
        return EXIT_PREEMPTED
    return None
