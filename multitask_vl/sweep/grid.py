"""Which runs does a grid consist of: axes with their options, what is left out and added, names and settings."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from multitask_vl.config import load
from multitask_vl.config.compose import lay_over, read_layers
from multitask_vl.config.error_messages import complaints
from multitask_vl.config.schema import Section
from multitask_vl.config.yaml_nodes import Node, did_you_mean, nodes_of, read_nodes, read_text
from multitask_vl.errors import InputError

Settings = dict[str, Any]
"""Dotted key -> value; `compose` names a YAML or several, laid below the rest."""


class Extra(Section):
    """Runs beside the product of the axes: some of its points, with something changed."""

    name: str
    """Joins the names of the runs, before that of the last axis."""
    at: dict[str, Any] = {}
    """Axis -> option or list of options. An axis left out takes all of its options."""
    set: Settings = {}
    """What these runs change."""


class Select(Section):
    """A setting that is chosen for each point of the grid before the runs of the `over` axis start."""

    key: str = "training.lr"
    """The setting."""
    values: list[Any]
    """What is tried, the first wins a tie."""
    over: str = "seed"
    """The axis whose first option tries the values; the best one holds for all of its options."""
    split: str = "tune"
    """Whose average decides. Not one that is reported."""
    set: Settings = {}
    """What trials change, such as fewer steps. Empty: the best trial is the first option's run."""


class GridFile(Section):
    """A YAML of a sweep."""

    base: str
    """The YAML that every run starts from; its path starts at the grid's folder."""
    out: Path
    """Folder of the sweep: `runs`, `logs`, ..."""
    always: Settings = {}
    """What every run changes."""
    axes: dict[str, Any]
    """Axis -> options. A list: the axis is a dotted key, these are its values. A mapping: option -> settings."""
    exclude: list[dict[str, Any]] = []
    """Points that are left out: axis -> option or list of options, all of which must agree."""
    include: list[Extra] = []
    """Runs besides."""
    select: Select | None = None
    """A setting chosen by trials."""
    quick: dict[str, Any] = {}
    """What `--quick` lays over this file: fewer seeds, fewer steps. It writes to `quick` under `out`."""


@dataclass(frozen=True)
class GridRun:
    """One run.

    Attributes:
        name: of its folder; unique, and the same whenever the grid is read.
        group: the name without that of the axis that repeats it.
        options: axis -> option.
        settings: what it changes, laid together.
        open: whether a setting is still to be chosen.
        value: of the setting that is chosen.
        trial: whether it only serves the choice.
    """

    name: str
    group: str
    options: Mapping[str, str]
    settings: Node = field(repr=False)
    open: bool = False
    value: Any = None
    trial: bool = False


@dataclass(frozen=True)
class Grid:
    """A sweep: its runs in order.

    Attributes:
        runs: those that are reported. Under `select` their setting is still open.
    """

    path: Path
    base: Path
    out: Path
    runs: tuple[GridRun, ...]
    select: Select | None

    def trials(self, group: str) -> list[GridRun]:
        """The runs that choose the setting of a group, in the order of its values."""
        first = next(run for run in self.runs if run.group == group)
        extra = _node(self.select.set, self.path, []) if self.select.set else None
        found = [self.at(first, value) for value in self.select.values]
        if extra is None:
            return found
        return [
            replace(one, name=f"{one.name}-trial", settings=lay_over(one.settings, extra, []), trial=True)
            for one in found
        ]

    def at(self, run: GridRun, value: Any) -> GridRun:
        """A run with its open setting set."""
        tail = run.name.removeprefix(run.group)
        chosen = lay_over(run.settings, _node({self.select.key: value}, self.path, []), [])
        name = f"{run.group}-{label(self.select.key, value)}{tail}"
        return replace(run, name=name, settings=chosen, open=False, value=value)

    def words(self, run: GridRun) -> list[str]:
        """``key=value`` words of a run, for the command line of training."""
        return [*words_of(run.settings), f"run_dir={self.out / 'runs' / run.name}"]

    def every(self) -> list[GridRun]:
        """All that may be run: trials first, then the runs; those with an open setting as they stand."""
        groups = dict.fromkeys(run.group for run in self.runs) if self.select else ()
        return [*(trial for group in groups for trial in self.trials(group)), *self.runs]

    def parts(self) -> tuple[list[GridRun], list[GridRun]]:
        """`every`, in two: what nothing must come before, and what waits for its trials."""
        every = self.every()
        return [run for run in every if not run.open], [run for run in every if run.open]


def read_grid(path: Path, quick: bool = False) -> Grid:
    """The sweep of a YAML.

    Raises:
        InputError: every problem of the file; every setting that is wrong, with the runs that have it.
    """
    problems: list[str] = []
    try:
        tree = read_nodes(read_text(path), str(path), problems)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    if tree is None or problems:
        raise InputError(problems)
    over = tree.value.get("quick")
    if quick and (over is None or not over.value):
        raise InputError(f"{path}: has no section 'quick'; leave --quick out, or say in it what is to be less")
    if quick:
        tree = lay_over(tree, over, problems)
    try:
        file = GridFile.model_validate(tree.plain())
    except ValidationError as error:
        raise InputError(complaints(error, GridFile, tree)) from None
    axes = {axis: _options(axis, options, path, problems) for axis, options in file.axes.items()}
    _check(file, axes, path, problems)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    runs = tuple(_runs(file, axes, path, problems))
    twice = [name for name, count in Counter(run.name for run in runs).items() if count > 1]
    problems += [f"{path}: several runs are called {name}; give their options other names" for name in twice]
    if problems or not runs:
        raise InputError(list(dict.fromkeys(problems)) or f"{path}: everything is excluded")
    out = file.out / "quick" if quick else file.out
    grid = Grid(path, (path.parent / file.base).resolve(), out.absolute(), runs, file.select)
    _load_all(grid)
    return grid


def label(key: str, value: Any) -> str:
    """A value in the name of a run: ``lr0.001``, ``seed42``, ``bf16``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _plain(str(value))
    return _plain(f"{key.split('.')[-1]}{value:g}" if isinstance(value, float) else f"{key.split('.')[-1]}{value}")


def words_of(settings: Node) -> list[str]:
    """Settings as ``key=value`` words: one for each value, one for a whole method."""

    def leaves(value: Any, at: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value and at != ("method",):
            for key, one in value.items():
                yield from leaves(one, (*at, key))
        else:
            yield ".".join(at), value[0] if at == ("method",) and isinstance(value, list) and len(value) == 1 else value

    return [f"{key}={_flow(value)}" for key, value in leaves(settings.plain(), ())]


def _options(axis: str, given: Any, path: Path, problems: list[str]) -> dict[str, Node]:
    """Option -> its settings."""
    if isinstance(given, list) and given:
        _check_names([(label(axis, value), value) for value in given], f"{path}: axes.{axis}", problems)
        return {label(axis, value): _node({axis: value}, path, problems) for value in given}
    if isinstance(given, dict) and given:
        wrong = [name for name, settings in given.items() if not isinstance(settings, dict)]
        problems += [f"{path}: axes.{axis}.{name}: expected a mapping of settings, {{}} for none" for name in wrong]
        _check_names([(_plain(name), name) for name in given], f"{path}: axes.{axis}", problems)
        return {_plain(name): _node(given[name], path, problems) for name in given if name not in wrong}
    problems.append(f"{path}: axes.{axis}: expected a list of values of the key {axis}, or a mapping of named options")
    return {}


def _check_names(named: Sequence[tuple[str, Any]], where: str, problems: list[str]) -> None:
    """Two options of one name in the runs' folders would be one run."""
    first: dict[str, Any] = {}
    for name, option in named:
        if name in first:
            problems.append(f"{where}: {first[name]!r} and {option!r} would both be called {name!r} in names of runs")
        first.setdefault(name, option)


def _node(settings: Settings, path: Path, problems: list[str]) -> Node:
    """Dotted settings as a layer, over those of the files they compose."""
    layer = Node({}, str(path))
    composed = settings.get("compose", [])
    for name in [composed] if isinstance(composed, str) else composed:
        below = read_layers(path.parent / str(name), problems)
        layer = layer if below is None else lay_over(layer, below, problems)
    for key, value in settings.items():
        if key == "compose":
            continue
        node = nodes_of(value, str(path))
        for part in reversed(key.split(".")):
            node = Node({part: node}, str(path))
        layer = lay_over(layer, node, problems)
    return layer


def _check(file: GridFile, axes: Mapping[str, Mapping[str, Node]], path: Path, problems: list[str]) -> None:
    """Names of axes and options must be those there are."""
    for where, points in (("exclude", file.exclude), ("include", [extra.at for extra in file.include])):
        for number, point in enumerate(points):
            for axis, names in point.items():
                at = f"{path}: {where}.{number}.{axis}"
                if axis not in axes:
                    problems.append(f"{at}: there is no such axis{did_you_mean(axis, axes, 'axes')}")
                    continue
                known = list(axes[axis])
                problems += [
                    f"{at}: there is no option {name!r}{did_you_mean(name, known, 'options')}"
                    for name in _names(axis, names, known)
                    if name not in known
                ]
    if file.select and file.select.over not in axes:
        problems.append(
            f"{path}: select.over: there is no axis {file.select.over!r}{did_you_mean(file.select.over, axes)}"
        )
    if file.select and not file.select.values:
        problems.append(f"{path}: select.values: nothing to choose from")
    if file.select:
        values = [(label(file.select.key, value), value) for value in file.select.values]
        _check_names(values, f"{path}: select.values", problems)


def _names(axis: str, given: Any, known: Iterable[str]) -> list[str]:
    """Options that a point names; those of a key's list may be given by their value."""
    return [
        str(one) if str(one) in known else label(axis, one) for one in (given if isinstance(given, list) else [given])
    ]


def _runs(file: GridFile, axes: Mapping[str, Mapping[str, Node]], path: Path, problems: list[str]) -> Iterator[GridRun]:
    always = _node(file.always, path, problems)
    repeats = file.select.over if file.select else list(axes)[-1]
    blocks = [(None, {}), *((extra, extra.at) for extra in file.include)]
    for extra, at in blocks:
        chosen = [_names(axis, at[axis], options) if axis in at else list(options) for axis, options in axes.items()]
        for names in itertools.product(*chosen):
            options = dict(zip(axes, names, strict=True))
            if extra is None and any(_agrees(options, point, axes) for point in file.exclude):
                continue
            settings = always
            for axis, name in options.items():
                settings = lay_over(settings, axes[axis][name], problems)
            if extra is not None:
                settings = lay_over(settings, _node(extra.set, path, problems), problems)
            parts = [name for axis, name in options.items() if axis != repeats]
            group = "-".join(filter(None, [*parts, _plain(extra.name) if extra else ""])) or "run"
            told = options | ({"include": extra.name} if extra else {})
            yield GridRun(f"{group}-{options[repeats]}", group, told, settings, open=file.select is not None)


def _agrees(options: Mapping[str, str], point: Mapping[str, Any], axes: Mapping[str, Mapping[str, Node]]) -> bool:
    return all(options[axis] in _names(axis, names, axes[axis]) for axis, names in point.items())


def _load_all(grid: Grid) -> None:
    """Every option must lead to a configuration: each group, each option of the axis that repeats it, each value."""
    first = grid.runs[0]
    runs = {run.group: run for run in reversed(grid.runs)}
    looked_at = [*runs.values(), *(run for run in grid.runs if run.group == first.group)]
    looked_at += grid.trials(first.group) if grid.select else []
    found: dict[str, list[str]] = {}
    for run in {run.name: run for run in looked_at}.values():
        try:
            scored = load(grid.base, grid.words(run)).config.evaluation
        except InputError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(run.name)
            continue
        if grid.select and not run.open and grid.select.split not in scored.during + scored.final:
            problem = f"select.split: trials do not score {grid.select.split!r}; put it into evaluation.final"
            found.setdefault(f"{grid.path}: {problem}", []).append(run.name)
    if found:
        raise InputError(
            [f"{problem} (of {len(names)} of the runs, such as {names[0]})" for problem, names in found.items()]
        )


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+]+", "_", str(name)).strip("_")


def _flow(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        .removesuffix("\n")
        .removesuffix("\n...")
    )
