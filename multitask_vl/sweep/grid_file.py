"""YAML schema of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multitask_vl.config.schema import Section

Settings = dict[str, Any]
"""Dotted key -> value; `compose` names one YAML file or several, merged below the rest."""


class IncludeRule(Section):
    """Further runs: some points of the grid, with changed settings."""

    name: str
    """Becomes part of the names of these runs, before the option of the last axis."""
    where: dict[str, Any] = {}
    """Axis -> option or list of options. An axis that is omitted takes all of its options."""
    overrides: Settings = {}
    """What these runs change."""


class Select(Section):
    """A setting selected by trials at each point of the grid, before the runs over `repeat_over` start."""

    key: str = "training.lr"
    """The setting."""
    values: list[Any]
    """Values to try; the first one wins a tie."""
    repeat_over: str = "seed"
    """The axis whose first option tries the values; the best value is used for all of its options."""
    split: str = "val"
    """The split whose average decides. Not one that is reported."""
    overrides: Settings = {}
    """What trials change, such as fewer steps. Empty: the best trial is also the run of the first option."""


class GridFile(Section):
    """A YAML file of a sweep."""

    base: str
    """The YAML file that every run starts from, relative to the folder of the sweep's file."""
    out: Path
    """Folder of the sweep: `runs`, `logs`, ..."""
    common: Settings = {}
    """What every run changes."""
    grid: dict[str, Any]
    """Axis -> options. A list: the axis is a dotted key, these are its values. A mapping: option -> settings."""
    exclude: list[dict[str, Any]] = []
    """Points to omit: axis -> option or list of options, all of which must match."""
    include: list[IncludeRule] = []
    """Further runs."""
    select: Select | None = None
    """A setting selected by trials."""
    smoke: dict[str, Any] = {}
    """Merged over this file by `--smoke`: fewer seeds, fewer steps. Results go to `smoke` under `out`."""
