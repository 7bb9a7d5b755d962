"""Check everything a run needs, up to one training step, without starting it.

    multitask-vl doctor CONFIG [key=value ...]

Exit codes: 0 the run would start; 2 it would not, with every problem listed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multitask_vl.errors import EXIT_BAD_INPUT

if TYPE_CHECKING:
    from multitask_vl.run.checks import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, as for train")
    parser.add_argument("--no-step", action="store_true", help="build the model, but do not try a training step")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from multitask_vl.doctor.checks import run_checks

    checks = run_checks(args.config, args.overrides, step=not args.no_step)
    ready = not any(check.problems for check in checks)
    print(_as_json(checks, ready) if args.json else _as_text(checks, ready))
    return 0 if ready else EXIT_BAD_INPUT


def _as_json(checks: Sequence[Check], ready: bool) -> str:
    rows = [
        {
            "check": check.name,
            "detail": check.detail,
            "state": check.state,
            "problems": check.problems,
            "warnings": check.warnings,
        }
        for check in checks
    ]
    return json.dumps({"ready": ready, "checks": rows}, ensure_ascii=False)


def _as_text(checks: Sequence[Check], ready: bool) -> str:
    rows = [(check.name, check.detail or "-", check.state) for check in checks]
    lines = [_table([("check", "detail", "state"), *rows])]
    # several splits may share a file; its messages are printed once
    warnings = dict.fromkeys(f"warning: {text}" for check in checks for text in check.warnings)
    problems = dict.fromkeys(f"problem: {text}" for check in checks for text in check.problems)
    for messages in (warnings, problems):
        lines += ["", *messages] if messages else []
    return "\n".join([*lines, "", "the run would start" if ready else "the run would not start"])


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
