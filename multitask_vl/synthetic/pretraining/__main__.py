"""Rebuild the bundled backbones, or measure what they can do.

    python -m multitask_vl.synthetic.pretraining clip [--out FOLDER]
    python -m multitask_vl.synthetic.pretraining bart [--out FOLDER]
    python -m multitask_vl.synthetic.pretraining probe [clip] [bart]

Every command explains its options with --help.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from multitask_vl.config.resources import WEIGHTS_DIR
from multitask_vl.errors import InputError, cli_errors
from multitask_vl.synthetic.pretraining.thresholds import format_thresholds

PROG = "python -m multitask_vl.synthetic.pretraining"
BACKBONES = ("clip", "bart")
COMMANDS = {
    "clip": "pretrain the tiny CLIP",
    "bart": "pretrain the tiny BART",
    "probe": "measure the backbones' skills",
}
EXIT_MISSED = 1


@cli_errors
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run a subcommand; exit code 1 if ``probe`` finds a required accuracy missed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nCommands: " + "; ".join(f"{name}, {text}" for name, text in COMMANDS.items()))
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        given = f"unknown command {arguments[0]!r}" if arguments else "a command is missing"
        raise InputError(f"{given}; give one of {', '.join(COMMANDS)}, for example: {PROG} clip --help")
    command, *rest = arguments
    if command == "probe":
        return probe(rest)
    recipe = importlib.import_module(f"multitask_vl.synthetic.pretraining.{command}_pretrain")
    parser = argparse.ArgumentParser(
        prog=f"{PROG} {command}",
        description=recipe.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS_DIR / command, help="folder to write (default: the bundled weights)"
    )
    recipe.add_arguments(parser)
    return recipe.run(parser.parse_args(rest))


def probe(argv: Sequence[str]) -> int:
    """Print the accuracy of every skill and its threshold."""
    parser = argparse.ArgumentParser(prog=f"{PROG} probe", description=COMMANDS["probe"].capitalize() + ".")
    parser.add_argument("backbones", nargs="*", help=f"backbones to probe (default: {' '.join(BACKBONES)})")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the scenes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    unknown = [name for name in options.backbones if name not in BACKBONES]
    if unknown:
        raise InputError([f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}" for name in unknown])
    results = []
    for name in options.backbones or BACKBONES:
        module = importlib.import_module(f"multitask_vl.synthetic.pretraining.{name}_probe")
        results += module.check_thresholds(options.seed)
    passed = all(result.passed for result in results)
    if options.json:
        rows = [{**asdict(result), "passed": result.passed} for result in results]
        print(json.dumps({"seed": options.seed, "passed": passed, "thresholds": rows}, indent=1))
    else:
        print(format_thresholds(results))
    return 0 if passed else EXIT_MISSED


if __name__ == "__main__":
    sys.exit(main())
