"""What does a configuration amount to before anything runs: its parameters, counted without weights."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.config import load_config
from multitask_vl.config.schema import Config
from multitask_vl.errors import exits_cleanly
from multitask_vl.models.build import build_model


def parameter_report(config: Config) -> dict:
    """``{"trainable", "total", "components": {name: {"trainable", "total"}}}`` of a configuration's model.

    The model is built without values, so base sizes take a second. The vocabulary is that of the sizes plus
    ``backbone.extra_tokens``; no tokenizer is read.
    """
    model = build_model(config, device="meta")
    trainable, total = model.parameter_counts()
    return {"trainable": trainable, "total": total, "components": model.components()}


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m multitask_vl.doctor --params [--json] CONFIG [key=value ...]``."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.doctor", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file")
    parser.add_argument("overrides", nargs="*", help="dotted.key=value")
    parser.add_argument("--params", action="store_true", required=True, help="count parameters")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    report = parameter_report(load_config(given.config, given.overrides))
    if given.json:
        print(json.dumps(report))
        return 0
    rows = [*report["components"].items(), ("all", report)]
    width = max(len(name) for name, _ in rows)
    print(f"{'component':<{width}}  {'trainable':>13}  {'total':>13}  {'share':>7}")
    for name, count in rows:
        share = 100 * count["trainable"] / count["total"]
        print(f"{name:<{width}}  {count['trainable']:>13,}  {count['total']:>13,}  {share:>6.2f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
