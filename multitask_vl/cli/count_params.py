"""Count trainable and total parameters, without weights and data.

    multitask-vl count-params CONFIG_OR_ID [key=value ...]
    multitask-vl count-params --markdown docs/methods.md

CONFIG_OR_ID is a YAML file or the id of a published row, such as adapter_single. Without one, the table of all
published rows is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from multitask_vl.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", nargs="?", metavar="CONFIG_OR_ID", help="YAML file, or id of a published row")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table of all rows between the markers of a page"
    )
    output.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.config and args.markdown:
        raise InputError("--markdown writes the table of all published rows; remove CONFIG_OR_ID")
    from multitask_vl.reports.markers import replace_section
    from multitask_vl.reproduction import parameters

    if args.config:
        report = parameters.count_parameters(args.config, args.overrides)
        print(json.dumps(report) if args.json else parameters.component_text(report))
        return
    rows = parameters.parameter_rows()
    if args.json:
        print(json.dumps(parameters.rows_as_json(rows), indent=1))
    elif args.markdown:
        replace_section(args.markdown, parameters.rows_as_markdown(rows), parameters.PARAMETERS_SECTION)
        print(f"{len(rows)} rows written between the markers of {args.markdown}")
    else:
        print(parameters.rows_as_text(rows))
