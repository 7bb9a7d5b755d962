"""Make the synthetic dataset: images, questions and captions in the official file formats.

    multitask-vl make-synthetic --out data/world

The same seed gives the same bytes, with any number of processes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--out", type=Path, required=True, help="folder to create; it must not exist yet")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of all scenes and texts (default: %(default)s)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size relative to the default dataset")
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from multitask_vl.synthetic.build import build_world

    started = time.monotonic()
    counts = build_world(args.out, args.seed, args.scale, args.processes)
    for name, number in counts.items():
        print(f"{name:18} {number:7,}")
    print(f"wrote {args.out} in {time.monotonic() - started:.1f} s")
