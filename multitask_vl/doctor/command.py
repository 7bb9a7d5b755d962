"""How does the doctor say what it found: a table of checks, every problem with what mends it, or one JSON object."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.config import load_config
from multitask_vl.errors import EXIT_BAD_INPUT, InputError, exits_cleanly
from multitask_vl.reproduction.parameters import parameter_report


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> int:
    """Look at everything that a run needs; exit code 0 only if it would start. --params only counts parameters."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.doctor", description=main.__doc__)
    parser.add_argument("config", type=Path, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as given to launch/train_multitask.py")
    parser.add_argument("--no-step", action="store_true", help="build the model, but do not try a training step")
    parser.add_argument("--params", action="store_true", help="count parameters, without weights and data")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_intermixed_args(arguments)
    if given.params and given.no_step:
        raise InputError("--params tries no step; leave --no-step out")
    if given.params:
        report = parameter_report(load_config(given.config, given.overrides))
        print(json.dumps(report) if given.json else _parameters(report))
        return 0
    # the training code takes seconds to import
    from multitask_vl.doctor.checks import examine

    findings = examine(given.config, given.overrides, step=not given.no_step)
    ready = not any(one.problems for one in findings)
    if given.json:
        told = ("found", "state", "problems", "remarks")
        checks = [{"check": one.name} | {name: getattr(one, name) for name in told} for one in findings]
        print(json.dumps({"ready": ready, "checks": checks}, ensure_ascii=False))
    else:
        lines = [_table([("check", "found", "state"), *((one.name, one.found or "-", one.state) for one in findings)])]
        for kind in ("remark", "problem"):
            # a file that several splits share is told once
            told = dict.fromkeys(f"{kind}: {text}" for one in findings for text in getattr(one, f"{kind}s"))
            lines += ["", *told] if told else []
        print("\n".join([*lines, "", "a run would start" if ready else "a run would not start"]))
    return 0 if ready else EXIT_BAD_INPUT


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _parameters(report: dict) -> str:
    rows = [*report["components"].items(), ("all", report)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'component':<{width}}  {'trainable':>13}  {'total':>13}  {'share':>7}"]
    for name, count in rows:
        share = 100 * count["trainable"] / count["total"]
        lines.append(f"{name:<{width}}  {count['trainable']:>13,}  {count['total']:>13,}  {share:>6.2f}%")
    return "\n".join(lines)
