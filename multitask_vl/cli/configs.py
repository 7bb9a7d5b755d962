"""Print where the installed configurations are, copy them, or write the reference of all keys.

multitask-vl configs --copy configs
multitask-vl configs --reference docs/configuration.md
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from multitask_vl.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--copy", type=Path, metavar="FOLDER", help="new folder to copy all configurations to")
    action.add_argument("--reference", type=Path, metavar="FILE", help="write the reference of all configuration keys")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from multitask_vl.config.resources import CONFIGS_DIR

    if args.reference:
        from multitask_vl.config.reference import reference_page
        from multitask_vl.storage.atomic import atomic_write

        atomic_write(args.reference, reference_page())
        print(f"wrote {args.reference}")
        return
    if args.copy is None:
        print(CONFIGS_DIR)
        return
    if args.copy.exists():
        raise InputError(f"{args.copy}: already exists; choose a new folder")
    shutil.copytree(CONFIGS_DIR, args.copy)
    count = sum(1 for _ in args.copy.rglob("*.yaml"))
    print(f"copied {count} YAML files to {args.copy}; start with {args.copy / 'examples' / 'quickstart.yaml'}")
