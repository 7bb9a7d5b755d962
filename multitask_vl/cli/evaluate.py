"""Predict with a saved adapter and score it.

multitask-vl evaluate --config RUN/resolved.yaml --adapter RUN/adapter --out DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--config", type=Path, required=True, help="resolved.yaml of the run, or a YAML that fits it")
    parser.add_argument("--adapter", type=Path, required=True, help="folder with adapter_model.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder for predictions, scores and submissions")
    parser.add_argument(
        "--split", action="append", help="split to score, repeatable (default: those of evaluation.final_splits)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from multitask_vl.config import load_config

    config = load_config(args.config, args.overrides)
    from multitask_vl.evaluation.evaluate_adapter import evaluate_adapter

    evaluate_adapter(config, args.adapter, args.out, args.split or config.evaluation.final_splits)
