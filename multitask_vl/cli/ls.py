"""List methods, routing functions, tasks, backbones, encoders or experiments, one line each.

multitask-vl ls methods
multitask-vl ls experiments --markdown
"""

from __future__ import annotations

import argparse
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

from multitask_vl.errors import InputError

REGISTRIES = {"methods": "METHODS", "routing": "ROUTING", "tasks": "TASKS", "backbones": "BACKBONES"}
"""What is listed -> its registry."""
FOLDERS = {"encoders": "vision", "experiments": "experiments"}
"""What is listed -> its folder of configs/."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("kind", choices=(*REGISTRIES, *FOLDERS), help="what to list")
    parser.add_argument("--plugin", action="append", default=[], help="module to import first, repeatable")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument(
        "--markdown", action="store_true", help="experiments: print tables with published scores and parameter counts"
    )
    tables.add_argument(
        "--write", type=Path, metavar="FILE", help="experiments: write these tables between the markers of a page"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.markdown or args.write:
        if args.kind != "experiments":
            raise InputError("--markdown and --write: only for experiments")
        _print_tables(args.write)
        return
    entries = dict(_registered(args.kind, args.plugin) if args.kind in REGISTRIES else _files(FOLDERS[args.kind]))
    width = max(map(len, entries)) + 2
    for name, summary in entries.items():
        print(f"{name:<{width}}{summary}")


def _registered(kind: str, plugins: list[str]) -> Iterator[tuple[str, str]]:
    from multitask_vl import registry

    registry.load_plugins(plugins)
    entries = getattr(registry, REGISTRIES[kind])
    for name in entries.names():
        yield name, (inspect.getdoc(entries.get(name)) or "").split("\n")[0]


def _files(folder: str) -> Iterator[tuple[str, str]]:
    from multitask_vl.config.resources import CONFIGS_DIR

    for path in sorted((CONFIGS_DIR / folder).rglob("*.yaml")):
        yield path.relative_to(CONFIGS_DIR / folder).with_suffix("").as_posix(), summary(path)


def summary(path: Path) -> str:
    """The first sentence of a YAML file's header comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.removeprefix("#").strip() for line in header)
    return text.split(". ")[0].split(" Run: ")[0].removesuffix(".").removesuffix(":")


def _print_tables(page: Path | None) -> None:
    from multitask_vl.reports.markers import replace_section
    from multitask_vl.reproduction.experiments import EXPERIMENTS_SECTION, experiments_as_markdown, read_experiments

    experiments = read_experiments()
    tables = experiments_as_markdown(experiments)
    if page is None:
        print(tables)
        return
    replace_section(page, f"\n{tables}\n", EXPERIMENTS_SECTION, "--write")
    print(f"{len(experiments)} experiments written between the markers of {page}")
