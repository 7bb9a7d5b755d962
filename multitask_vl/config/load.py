"""How does a YAML become the configuration of a run: compose, override, validate, remember every origin."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask_vl.config.compose import read_layers, without_removed
from multitask_vl.config.overrides import apply_overrides
from multitask_vl.config.resolved import origins_of, resolved_text
from multitask_vl.config.schema import Config
from multitask_vl.config.validate import validate
from multitask_vl.config.yaml_nodes import nodes_of
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import write_whole


@dataclass(frozen=True)
class Loaded:
    """A configuration and where each of its values came from.

    Attributes:
        config: the validated configuration.
        origins: dotted key of each value -> ``file:line``, ``override`` or ``default``.
    """

    config: Config
    origins: dict[str, str]

    def write_resolved(self, path: Path) -> None:
        """Write the whole configuration as one YAML with its origins; `load` of it gives an equal `Config`."""
        write_whole(path, resolved_text(self.config, self.origins))


def load(path: Path | str, overrides: Sequence[str] = ()) -> Loaded:
    """Read a YAML with all that it composes, change it by ``key=value`` words, and validate it.

    Args:
        path: the YAML file.
        overrides: words such as ``training.lr=1e-3``, ``method.rank=32``, ``tasks.gqa=null`` (takes the task out).

    Raises:
        InputError: with one line for every problem of every file and word. Where a file cannot be read at all the
            values are not judged, since most of what could be said of them would be wrong.
    """
    problems: list[str] = []
    tree = read_layers(Path(path), problems)
    if tree is None:
        raise InputError(_by_place(problems, path))
    tree = without_removed(apply_overrides(tree, overrides, problems))
    config = validate(tree, problems)
    if config is None:
        raise InputError(_by_place(problems, path))
    return Loaded(config, origins_of(config, tree))


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """`load` for those who do not ask where the values came from."""
    return load(path, overrides).config


def config_from(values: Mapping[str, Any], name: str) -> Config:
    """The configuration that was dumped by ``model_dump(mode="json")`` and kept in an artefact.

    ``Config.model_validate`` alone does not know the keys of tasks and methods; this looks their classes up first.

    Args:
        values: the dump.
        name: what errors call it, e.g. the path of the file it was kept in.

    Raises:
        InputError: with one line for every problem, as by `load`.
    """
    problems: list[str] = []
    config = validate(nodes_of(dict(values), name), problems)
    if config is None:
        raise InputError(problems)
    return config


def _by_place(problems: list[str], first: Path | str) -> list[str]:
    """Problems file by file, the one asked for first, and top to bottom, as one mends them."""
    places = [re.match(r"(.+?):(\d+): ", problem) for problem in problems]
    files = list(dict.fromkeys([str(first), *(place[1] for place in places if place)]))
    keys = [(files.index(place[1]) + 1, int(place[2])) if place else (0, 0) for place in places]
    return [problem for _, problem in sorted(zip(keys, problems, strict=True), key=lambda pair: pair[0])]
