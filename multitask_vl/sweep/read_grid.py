"""Read and check the YAML file of a sweep."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multitask_vl.config import load_config
from multitask_vl.config.compose import merge
from multitask_vl.config.error_messages import validation_messages
from multitask_vl.config.yaml_nodes import Node, did_you_mean, read_nodes, read_text
from multitask_vl.errors import InputError
from multitask_vl.sweep.grid import Grid, GridRun, sanitize, settings_node, value_label
from multitask_vl.sweep.grid_file import GridFile

Axes = Mapping[str, Mapping[str, Node]]
"""Axis -> option -> its settings."""


def read_grid(path: Path, smoke: bool = False) -> Grid:
    """Read the YAML file of a sweep.

    Args:
        smoke: use the smaller form that its `smoke` section describes.

    Raises:
        InputError: every problem of the file; every invalid setting, with the runs that have it.
    """
    problems: list[str] = []
    file = _read_file(path, smoke, problems)
    axes = {axis: _options(axis, options, path, problems) for axis, options in file.grid.items()}
    _check_references(file, axes, path, problems)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    runs = tuple(_runs(file, axes, path, problems))
    repeated = [name for name, count in Counter(run.name for run in runs).items() if count > 1]
    problems += [f"{path}: several runs are called {name}; give their options other names" for name in repeated]
    if problems or not runs:
        raise InputError(list(dict.fromkeys(problems)) or f"{path}: everything is excluded")
    out = file.out / "smoke" if smoke else file.out
    grid = Grid(path, (path.parent / file.base).resolve(), out.absolute(), runs, file.select)
    _check_configs(grid)
    return grid


def _read_file(path: Path, smoke: bool, problems: list[str]) -> GridFile:
    try:
        tree = read_nodes(read_text(path), str(path), problems)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    if tree is None or problems:
        raise InputError(problems)
    over = tree.value.get("smoke")
    if smoke and (over is None or not over.value):
        raise InputError(f"{path}: has no section 'smoke'; omit --smoke, or add a section with fewer steps and seeds")
    if smoke:
        tree = merge(tree, over, problems)
    try:
        return GridFile.model_validate(tree.to_python())
    except ValidationError as error:
        raise InputError(validation_messages(error, GridFile, tree)) from None


def _options(axis: str, given: Any, path: Path, problems: list[str]) -> dict[str, Node]:
    """Option -> its settings."""
    if isinstance(given, list) and given:
        _check_names([(value_label(axis, value), value) for value in given], f"{path}: grid.{axis}", problems)
        return {value_label(axis, value): settings_node({axis: value}, path, problems) for value in given}
    if isinstance(given, dict) and given:
        wrong = [name for name, settings in given.items() if not isinstance(settings, dict)]
        problems += [f"{path}: grid.{axis}.{name}: expected a mapping of settings, {{}} for none" for name in wrong]
        _check_names([(sanitize(name), name) for name in given], f"{path}: grid.{axis}", problems)
        return {sanitize(name): settings_node(given[name], path, problems) for name in given if name not in wrong}
    problems.append(f"{path}: grid.{axis}: expected a list of values of the key {axis}, or a mapping of named options")
    return {}


def _check_names(named: Sequence[tuple[str, Any]], where: str, problems: list[str]) -> None:
    """Report options whose names in run folders would be the same."""
    first: dict[str, Any] = {}
    for name, option in named:
        if name in first:
            problems.append(f"{where}: {first[name]!r} and {option!r} would both be called {name!r} in names of runs")
        first.setdefault(name, option)


def _check_references(file: GridFile, axes: Axes, path: Path, problems: list[str]) -> None:
    """Report names of axes and options that do not exist."""
    for section, points in (("exclude", file.exclude), ("include", [rule.where for rule in file.include])):
        for number, point in enumerate(points):
            for axis, names in point.items():
                at = f"{path}: {section}.{number}.{axis}"
                if axis not in axes:
                    problems.append(f"{at}: unknown axis{did_you_mean(axis, axes, 'axes')}")
                    continue
                known = list(axes[axis])
                problems += [
                    f"{at}: unknown option {name!r}{did_you_mean(name, known, 'options')}"
                    for name in _option_names(axis, names, known)
                    if name not in known
                ]
    if file.select is None:
        return
    if file.select.repeat_over not in axes:
        unknown = file.select.repeat_over
        problems.append(f"{path}: select.repeat_over: unknown axis {unknown!r}{did_you_mean(unknown, axes)}")
    if not file.select.values:
        problems.append(f"{path}: select.values: is empty")
    values = [(value_label(file.select.key, value), value) for value in file.select.values]
    _check_names(values, f"{path}: select.values", problems)


def _option_names(axis: str, given: Any, known: Iterable[str]) -> list[str]:
    """Names of the options of a point; those of an axis that is a key may be given by their value."""
    return [
        str(option) if str(option) in known else value_label(axis, option)
        for option in (given if isinstance(given, list) else [given])
    ]


def _runs(file: GridFile, axes: Axes, path: Path, problems: list[str]) -> Iterator[GridRun]:
    common = settings_node(file.common, path, problems)
    repeated = file.select.repeat_over if file.select else list(axes)[-1]
    for rule in (None, *file.include):
        where = rule.where if rule else {}
        chosen = [
            _option_names(axis, where[axis], options) if axis in where else list(options)
            for axis, options in axes.items()
        ]
        for names in itertools.product(*chosen):
            options = dict(zip(axes, names, strict=True))
            if rule is None and any(_matches(options, point, axes) for point in file.exclude):
                continue
            settings = common
            for axis, name in options.items():
                settings = merge(settings, axes[axis][name], problems)
            if rule is not None:
                settings = merge(settings, settings_node(rule.overrides, path, problems), problems)
            parts = [name for axis, name in options.items() if axis != repeated]
            group = "-".join(filter(None, [*parts, sanitize(rule.name) if rule else ""])) or "run"
            yield GridRun(
                name=f"{group}-{options[repeated]}",
                group=group,
                options=options | ({"include": rule.name} if rule else {}),
                settings=settings,
                needs_selection=file.select is not None,
            )


def _matches(options: Mapping[str, str], point: Mapping[str, Any], axes: Axes) -> bool:
    return all(options[axis] in _option_names(axis, names, axes[axis]) for axis, names in point.items())


def _check_configs(grid: Grid) -> None:
    """Load the configuration of each group, each option of the repeated axis, and each value to be tried."""
    first = grid.runs[0]
    checked = [*{run.group: run for run in reversed(grid.runs)}.values()]
    checked += [run for run in grid.runs if run.group == first.group]
    checked += grid.trials(first.group) if grid.select else []
    found: dict[str, list[str]] = {}
    for run in {run.name: run for run in checked}.values():
        try:
            evaluation = load_config(grid.base, grid.cli_args(run)).evaluation
        except InputError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(run.name)
            continue
        splits = evaluation.eval_splits + evaluation.final_splits
        if grid.select and not run.needs_selection and grid.select.split not in splits:
            problem = f"select.split: trials do not score {grid.select.split!r}; add it to evaluation.final_splits"
            found.setdefault(f"{grid.path}: {problem}", []).append(run.name)
    if found:
        raise InputError(
            [f"{problem} (in {len(names)} of the runs, such as {names[0]})" for problem, names in found.items()]
        )
