"""Do the shipped backbones still have their skills: ``python -m multitask_vl.synthetic.pretraining.probe [--json] [--seed N]``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.synthetic.pretraining.thresholds import table

PROBES = {
    "clip": "multitask_vl.synthetic.pretraining.clip_probe",
    "bart": "multitask_vl.synthetic.pretraining.bart_probe",
}
EXIT_MISSED = 1


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int:
    """Print every gate with its value; exit code 1 if a required one is missed."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.synthetic.pretraining.probe", description=__doc__)
    parser.add_argument("which", nargs="*", help="backbones to probe: clip, bart (default: both)")
    parser.add_argument("--seed", type=int, default=0, help="decides the scenes the probes are asked about")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(argv)
    unknown = [name for name in options.which if name not in PROBES]
    if unknown:
        raise InputError([f"no backbone {name!r} to probe (known: {', '.join(PROBES)})" for name in unknown])
    found = []
    for name in options.which or PROBES:
        found += importlib.import_module(PROBES[name]).gates(options.seed)
    passed = all(gate.passed for gate in found)
    if options.json:
        rows = [{**asdict(gate), "passed": gate.passed} for gate in found]
        print(json.dumps({"seed": options.seed, "passed": passed, "gates": rows}, indent=1))
    else:
        print(table(found))
    return 0 if passed else EXIT_MISSED


if __name__ == "__main__":
    sys.exit(main())
