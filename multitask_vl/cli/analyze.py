"""Analyze a trained model: weight changes, cross-attention, gates, routing similarity.

    multitask-vl analyze RUN [key=value ...]
    multitask-vl analyze --adapter DIR --config YAML --out DIR [key=value ...]

Writes Frobenius norms of the trained changes of W_down and W_up, cross-attention maps on images, gates of VL-PET, and
cosine similarities of x_R across tasks. Numbers go to analysis.json, figures into the run's report.html; without the
scores of a run, to analysis.html.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from multitask_vl.errors import InputError

if TYPE_CHECKING:
    from multitask_vl.config.schema import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="adapter folder, instead of RUN")
    parser.add_argument(
        "--config", type=Path, metavar="YAML", help="with --adapter: configuration that fits it and has its data paths"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --adapter: folder for the results")
    parser.add_argument("--split", help="split of the examples (default: the first of evaluation.final_splits)")
    parser.add_argument(
        "--examples", type=int, default=4, metavar="N", help="examples per task to draw (default: %(default)s)"
    )
    parser.add_argument("--ids", nargs="+", default=[], metavar="TASK:ID", help="further examples to draw")
    parser.add_argument(
        "--num-routing-examples",
        type=int,
        default=64,
        metavar="N",
        help="examples per task for routing similarity and gates (default: %(default)s)",
    )
    parser.add_argument("--control", type=Path, metavar="RUN", help="shuffled-image control of the report")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    folder, overrides = _run_and_overrides(args)
    if args.examples < 0 or args.num_routing_examples < 2:
        raise InputError("--examples must be 0 or more, --num-routing-examples 2 or more")
    if args.adapter and not (args.config and args.out):
        raise InputError("--adapter: add --config YAML, which has the paths of data and features, and --out DIR")
    source = args.config or folder / "resolved.yaml"
    if not source.is_file():
        raise InputError(f"{source}: no such file; give a run folder, or --adapter with --config")
    from multitask_vl.config import load_config

    config, out = load_config(source, overrides), args.out or folder
    from multitask_vl.analysis.analyze import analyze, write_analysis

    split = args.split or next(iter(config.evaluation.final_splits), "test")
    analysis = analyze(config, args.adapter or folder, split, args.examples, args.ids, args.num_routing_examples)
    print(f"analysis: {write_analysis(out, analysis)}")
    if folder and (folder / "scores.json").is_file():
        from multitask_vl.reports.page import write_report

        print(f"report: {write_report(folder, args.control)}")
    else:
        print(f"page: {_write_page(out, config, args.adapter or folder)}")


def _run_and_overrides(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The run folder (None with --adapter) and the overrides; argparse takes the first override for the folder."""
    overrides, folder = args.overrides, args.run
    if folder and "=" in folder and not Path(folder).exists():
        overrides, folder = [folder, *overrides], None
    if (folder is None) == (args.adapter is None):
        raise InputError("give either a run folder or --adapter DIR")
    return folder and Path(folder), overrides


def _write_page(out: Path, config: Config, adapter: Path) -> Path:
    from multitask_vl.reports.analysis_section import analysis_page
    from multitask_vl.reports.html import write_page

    folders = [config.data_dir / folder for folder in config.features.images]
    return write_page(out / "analysis.html", analysis_page(out, str(adapter), folders, config.vision.resize))
