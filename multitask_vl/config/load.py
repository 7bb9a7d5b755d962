"""Loading of a configuration: compose files, apply overrides, validate, record origins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask_vl.config.compose import drop_removed, read_layers
from multitask_vl.config.overrides import apply_overrides
from multitask_vl.config.resolved import origins_of, resolved_text
from multitask_vl.config.schema import Config
from multitask_vl.config.validate import validate
from multitask_vl.config.yaml_nodes import to_nodes
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration with the origin of each value.

    Attributes:
        config: the validated configuration.
        origins: dotted key of each value -> ``file:line``, ``override`` or ``default``.
    """

    config: Config
    origins: dict[str, str]

    def write_resolved(self, path: Path) -> None:
        """Write the configuration as a single YAML file with origins; `load` of it returns an equal `Config`."""
        atomic_write(path, resolved_text(self.config, self.origins))


def load(path: Path | str, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read a YAML file with everything it composes, apply ``key=value`` overrides, and validate the result.

    Args:
        path: the YAML file.
        overrides: arguments such as ``training.lr=1e-3``, ``method.rank=32`` or ``tasks.gqa=null`` (removes the task).

    Raises:
        InputError: one line for every problem in every file and override. If a file cannot be read, values are not
            validated, because most of the resulting errors would be wrong.
    """
    problems: list[str] = []
    tree = read_layers(Path(path), problems)
    if tree is None:
        raise InputError(_sorted_by_place(problems, path))
    tree = drop_removed(apply_overrides(tree, overrides, problems))
    config = validate(tree, problems)
    if config is None:
        raise InputError(_sorted_by_place(problems, path))
    return LoadedConfig(config, origins_of(config, tree))


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration without the origins of its values; see `load`."""
    return load(path, overrides).config


def config_from(values: Mapping[str, Any], name: str) -> Config:
    """Rebuild a configuration from its ``model_dump(mode="json")``, such as the one saved with an adapter.

    Unlike ``Config.model_validate``, this finds the classes that define the keys of tasks and methods.

    Args:
        values: the dumped configuration.
        name: its name in error messages, such as the path of the file that contains it.

    Raises:
        InputError: one line for every problem.
    """
    problems: list[str] = []
    config = validate(to_nodes(dict(values), name), problems)
    if config is None:
        raise InputError(problems)
    return config


def _sorted_by_place(problems: list[str], first: Path | str) -> list[str]:
    """Problems grouped by file, ``first`` before the others, in line order."""
    places = [re.match(r"(.+?):(\d+): ", problem) for problem in problems]
    files = list(dict.fromkeys([str(first), *(place[1] for place in places if place)]))
    keys = [(files.index(place[1]) + 1, int(place[2])) if place else (0, 0) for place in places]
    return [problem for _, problem in sorted(zip(keys, problems, strict=True), key=lambda pair: pair[0])]
