"""Compare recorded files with this project: ``python -m tests.golden FILE...``, one line per file.

A line has the file's name, the worst absolute difference, and ``pass``, ``fail`` (with the first reason) or
``unsupported`` (with the reason). Recorded outputs that this version does not know are ignored and named at the end of
the line. The exit code is 0 if every file passes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from multitask_vl.errors import InputError
from tests.golden.encoders import PIXELS, run_encoder
from tests.golden.fixture import Fixture, Report, UnsupportedFile, read
from tests.golden.layers import run_layer
from tests.golden.models import run_losses, run_model, run_training


def run(path: Path) -> Report:
    """Compare one file.

    Raises:
        UnsupportedFile: a file of a kind that this version does not support.
    """
    try:
        fixture = read(path)
        return _runner(fixture)(fixture)
    except (InputError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UnsupportedFile(f"{type(error).__name__}: {error}") from error


def _runner(fixture: Fixture) -> Callable[[Fixture], Report]:
    if "module" in fixture.meta:
        return run_layer
    if "task_of_step" in fixture.meta:
        return run_training
    if "input/logits" in fixture.tensors:
        return run_losses
    if PIXELS in fixture.tensors:
        return run_encoder
    if "trainable" in fixture.meta and any(name.startswith("output/") for name in fixture.tensors):
        return run_model
    raise UnsupportedFile(f"a file of kind {fixture.meta.get('fixture', 'unknown')!r}")


def main(arguments: Sequence[str]) -> int:
    """Print one line per file; returns 0 if all pass, 1 otherwise, 2 without files."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    paths = [Path(argument) for argument in arguments]
    width = max(len(path.name) for path in paths)
    passed = True
    for path in paths:
        try:
            report = run(path)
        except UnsupportedFile as reason:
            passed = False
            print(f"{path.name:<{width}}  {'-':>8}  unsupported: {' '.join(str(reason).split())}")
            continue
        verdict = f"fail: {report.failures[0]} ({len(report.failures)} in total)" if report.failures else "pass"
        ignored = f"  (ignored: {', '.join(dict.fromkeys(report.ignored))})" if report.ignored else ""
        passed = passed and not report.failures
        print(f"{path.name:<{width}}  {report.worst:8.1e}  {verdict}{ignored}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
