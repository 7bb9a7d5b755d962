"""Runs of a sweep: names, settings and command-line arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from multitask_vl.config.compose import merge, read_layers
from multitask_vl.config.yaml_nodes import Node, to_nodes
from multitask_vl.sweep.grid_file import Select, Settings


@dataclass(frozen=True)
class GridRun:
    """One run.

    Attributes:
        name: name of its folder; unique, and the same whenever the grid is read.
        group: the name without the option of the axis that repeats it.
        options: axis -> option.
        settings: what it changes, merged.
        needs_selection: whether a setting is still to be selected by trials.
        value: value of the selected setting.
        trial: whether the run only serves the selection.
    """

    name: str
    group: str
    options: Mapping[str, str]
    settings: Node = field(repr=False)
    needs_selection: bool = False
    value: Any = None
    trial: bool = False


@dataclass(frozen=True)
class Grid:
    """A sweep: its runs in order.

    Attributes:
        path: YAML file of the sweep.
        base: YAML file that every run starts from.
        out: folder of the sweep.
        runs: the runs that are reported. With `select`, one of their settings is still to be selected.
        select: how it is selected.
    """

    path: Path
    base: Path
    out: Path
    runs: tuple[GridRun, ...]
    select: Select | None

    def trials(self, group: str) -> list[GridRun]:
        """The runs that select the setting of a group, in the order of its values."""
        first = next(run for run in self.runs if run.group == group)
        trials = [self.with_value(first, value) for value in self.select.values]
        if not self.select.overrides:
            return trials
        overrides = settings_node(self.select.overrides, self.path, [])
        return [
            replace(run, name=f"{run.name}-trial", settings=merge(run.settings, overrides, []), trial=True)
            for run in trials
        ]

    def with_value(self, run: GridRun, value: Any) -> GridRun:
        """A run with its selected setting."""
        suffix = run.name.removeprefix(run.group)
        settings = merge(run.settings, settings_node({self.select.key: value}, self.path, []), [])
        name = f"{run.group}-{value_label(self.select.key, value)}{suffix}"
        return replace(run, name=name, settings=settings, needs_selection=False, value=value)

    def cli_args(self, run: GridRun) -> list[str]:
        """The ``key=value`` arguments of a run for the training command."""
        return [*to_cli_args(run.settings), f"run_dir={self.out / 'runs' / run.name}"]

    def all_runs(self) -> list[GridRun]:
        """Trials first, then the reported runs."""
        groups = dict.fromkeys(run.group for run in self.runs) if self.select else ()
        return [*(trial for group in groups for trial in self.trials(group)), *self.runs]

    def ready_and_pending(self) -> tuple[list[GridRun], list[GridRun]]:
        """`all_runs` in two lists: runs that can start, and runs that wait for trials."""
        runs = self.all_runs()
        return [run for run in runs if not run.needs_selection], [run for run in runs if run.needs_selection]


def value_label(key: str, value: Any) -> str:
    """A value in the name of a run: ``lr0.001``, ``seed42``, ``bf16``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return sanitize(str(value))
    return sanitize(f"{key.split('.')[-1]}{value:g}" if isinstance(value, float) else f"{key.split('.')[-1]}{value}")


def sanitize(name: str) -> str:
    """A name without characters that a folder's name should not have."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "_", str(name)).strip("_")


def to_cli_args(settings: Node) -> list[str]:
    """Settings as ``key=value`` arguments: one per value, and one for a whole method."""

    def leaves(value: Any, at: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value and at != ("method",):
            for key, child in value.items():
                yield from leaves(child, (*at, key))
        else:
            yield ".".join(at), value[0] if at == ("method",) and isinstance(value, list) and len(value) == 1 else value

    return [f"{key}={_flow_yaml(value)}" for key, value in leaves(settings.to_python(), ())]


def settings_node(settings: Settings, path: Path, problems: list[str]) -> Node:
    """Dotted settings as a layer, merged over the files that they compose.

    Args:
        path: YAML file of the sweep, for relative paths and messages.
        problems: gets what is wrong with composed files.
    """
    layer = Node({}, str(path))
    composed = settings.get("compose", [])
    for name in [composed] if isinstance(composed, str) else composed:
        below = read_layers(path.parent / str(name), problems)
        layer = layer if below is None else merge(layer, below, problems)
    for key, value in settings.items():
        if key == "compose":
            continue
        node = to_nodes(value, str(path))
        for part in reversed(key.split(".")):
            node = Node({part: node}, str(path))
        layer = merge(layer, node, problems)
    return layer


def _flow_yaml(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        .removesuffix("\n")
        .removesuffix("\n...")
    )
