"""Look inside a trained model: python launch/analyze.py RUN, or --adapter DIR --config YAML --out DIR

Frobenius norms of what training changed in W_down and W_up, cross-attention drawn on pictures, gates of VL-PET, cosines
of x_R across tasks. Numbers go to analysis.json, figures into the run's report.html, which is written anew; without
the scores of a run, to analysis.html.
"""

import argparse
from pathlib import Path

from multitask_vl.config import load
from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError, exits_cleanly


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run folder")
    what.add_argument("--adapter", type=Path, metavar="DIR", help="folder of an adapter")
    parser.add_argument("--config", type=Path, help="with --adapter: a YAML that fits it and says where its data are")
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --adapter: where figures go")
    parser.add_argument("--split", help="whose examples are shown (default: the first of evaluation.final)")
    parser.add_argument("--examples", type=int, default=4, metavar="N", help="drawn a task (default: %(default)s)")
    parser.add_argument("--ids", nargs="+", default=[], metavar="TASK:ID", help="examples to draw besides")
    parser.add_argument("--compared", type=int, default=64, metavar="N", help="x_R and gates a task (default: 64)")
    parser.add_argument("--control", type=Path, metavar="BLIND_RUN", help="of the report that is written anew")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="changes of the configuration")
    args = parser.parse_args()
    if args.examples < 0 or args.compared < 2:
        raise InputError("--examples must be 0 or more, --compared 2 or more")
    if args.adapter and not (args.config and args.out):
        raise InputError("--adapter: add --config YAML, which says where data and features are, and --out DIR")
    source = args.config or args.run / "resolved.yaml"
    if not source.is_file():
        raise InputError(f"{source}: there is no such file; name the folder of a run, or --adapter with --config")
    config, out = load(source, args.set).config, args.out or args.run
    from multitask_vl.analysis.analyze import analyse, write_analysis

    split = args.split or next(iter(config.evaluation.final), "report")
    found = analyse(config, args.adapter or args.run, split, args.examples, args.ids, args.compared)
    print(f"analysis: {write_analysis(out, found)}")
    if args.run and (args.run / "scores.json").is_file():
        from multitask_vl.reports.page import write_report

        print(f"report: {write_report(args.run, args.control)}")
    else:
        print(f"page: {_page(out, config, args.adapter or args.run)}")


def _page(out: Path, config: Config, adapter: Path) -> Path:
    from multitask_vl.reports.analysis_section import inside_page
    from multitask_vl.reports.html import write_page

    folders = [config.data_dir / folder for folder in config.features.images]
    return write_page(out / "analysis.html", inside_page(out, str(adapter), folders, config.clip.resize))


if __name__ == "__main__":
    raise SystemExit(main())
