"""What does `multitask-vl` do: it runs a program of the project by a short name, from a checkout or installed.

Programs lie in `launch/` beside the package, or, in an installed one, inside it; a file that is put there is a command.
"""

from __future__ import annotations

import ast
import runpy
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from multitask_vl import __version__
from multitask_vl.config.yaml_nodes import did_you_mean
from multitask_vl.errors import EXIT_BAD_INPUT, InputError, exits_cleanly
from multitask_vl.programs import HOME

SHORT = {"train": "train_multitask", "extract": "extract_features", "parameters": "parameter_table"}
"""Command -> program of `launch/` that is called otherwise."""
MODULES = {
    "build-world": "multitask_vl.synthetic.build",
    "doctor": "multitask_vl.doctor",
    "features": "feature_extraction.maintenance.manage",
    "report": "multitask_vl.reports",
    "score": "multitask_vl.evaluation.score",
    "check-submission": "multitask_vl.evaluation.submission",
}
"""Command -> module that is run."""
CONFIGS = "configs"
NAME = "multitask-vl"
END = f"""
Help of one: {NAME} COMMAND --help. Several processes: accelerate launch -m multitask_vl train --config ...
Configurations of your own start from those that are installed: {NAME} {CONFIGS} --copy {CONFIGS}"""


def commands() -> dict[str, Path | str]:
    """Command -> the file or module that it runs."""
    short = {program: command for command, program in SHORT.items()}
    files = {path.stem: path for path in sorted((HOME / "launch").glob("*.py"))}
    return {short.get(name, name.replace("_", "-")): path for name, path in files.items()} | MODULES


@exits_cleanly
def main() -> int | None:
    """Run the command that ``sys.argv`` names, with the words behind it."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else EXIT_BAD_INPUT
    command, rest = words[0], words[1:]
    if command in ("-V", "--version"):
        print(f"{NAME} {__version__}")
        return 0
    if command == CONFIGS:
        return _configs(rest)
    known = commands()
    if command not in known:
        raise InputError(f"unknown command {command!r}{did_you_mean(command, [*known, CONFIGS])}")
    target, before = known[command], sys.argv
    sys.argv = [f"{NAME} {command}", *rest]
    try:
        if isinstance(target, Path):
            return runpy.run_path(str(target))["main"]()
        runpy.run_module(target, run_name="__main__")
    finally:
        sys.argv = before
    return 0


def _configs(words: list[str]) -> None:
    """Say where the configurations are, or copy them to where they can be changed."""
    source = HOME / CONFIGS
    if words and (words[0] != "--copy" or len(words) != 2):
        raise InputError(f"usage: {NAME} {CONFIGS} [--copy FOLDER]")
    if not words:
        print(source)
        return
    target = Path(words[1])
    if target.exists():
        raise InputError(f"{target}: is there already; name a new folder")
    shutil.copytree(source, target)
    print(f"{sum(1 for _ in target.rglob('*.yaml'))} YAMLs copied to {target}; start with {target / 'quickstart.yaml'}")


def _help() -> str:
    rows = {name: _question(target) for name, target in sorted(commands().items())}
    rows[CONFIGS] = "Where are the configurations that come with it? --copy FOLDER puts them there."
    width = max(map(len, rows)) + 2
    lines = [f"  {name:<{width}}{said}" for name, said in sorted(rows.items())]
    return "\n".join([f"usage: {NAME} COMMAND ...", "", *lines, END])


def _question(target: Path | str) -> str:
    """The first line of a program's docstring, read without running it; what follows a colon is how to call it."""
    spec = None if isinstance(target, Path) else find_spec(target)
    path = target if isinstance(target, Path) else Path(spec.origin)
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.split("\n")[0].split(": python")[0].split(": accelerate")[0]


if __name__ == "__main__":
    raise SystemExit(main())
