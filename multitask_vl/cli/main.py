"""The `multitask-vl` command.

A subcommand is a module of this package with ``add_arguments(parser)`` and ``run(args) -> int | None``. Its docstring
is the help text. Heavy libraries are imported inside ``run``, so that ``--help`` needs none of them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from multitask_vl import __version__
from multitask_vl.errors import EXIT_BAD_INPUT, InputError, cli_errors
from multitask_vl.logging import configure_logging

NAME = "multitask-vl"
GROUPS = {
    "Data": ("make-synthetic", "extract", "store"),
    "Training": ("doctor", "train", "evaluate", "sweep"),
    "Inference": ("predict", "demo", "export"),
    "Reports": ("report", "compare", "analyze", "score", "check-submission"),
    "Project": ("ls", "count-params", "configs"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
EPILOG = f"""\
Help for a command: {NAME} COMMAND --help
Several processes:  accelerate launch -m multitask_vl train --config CONFIG
Your own configs:   {NAME} configs --copy configs"""


@cli_errors
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run a subcommand.

    Args:
        argv: its name and arguments; None: those of the process.

    Returns:
        the exit code; None is 0.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else EXIT_BAD_INPUT
    command, *rest = arguments
    if command in ("-V", "--version"):
        print(f"{NAME} {__version__}")
        return 0
    if command not in COMMANDS:
        from multitask_vl.config.yaml_nodes import did_you_mean

        raise InputError(f"unknown command {command!r}{did_you_mean(command, COMMANDS)}")
    module = load_command(command)
    parser = build_parser(command, module)
    # overrides (key=value) may stand between options, except in a command that has subcommands itself
    parse = parser.parse_args if hasattr(module, "SUBCOMMANDS") else parser.parse_intermixed_args
    args = parse(rest)
    configure_logging()
    return module.run(args)


def load_command(name: str) -> ModuleType:
    """The module of a subcommand."""
    return importlib.import_module(f"multitask_vl.cli.{name.replace('-', '_')}")


def build_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The argument parser of a subcommand."""
    parser = argparse.ArgumentParser(
        prog=f"{NAME} {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"usage: {NAME} COMMAND ..."]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<{width}}{_summary(name)}" for name in names)]
    return "\n".join([*lines, "", EPILOG])


def _summary(name: str) -> str:
    return load_command(name).__doc__.split("\n")[0].removesuffix(".")
