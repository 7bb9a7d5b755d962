"""The configurations of `configs/experiments` and the published figures in their `reproduces:` blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from pathlib import Path

import yaml

from multitask_vl.config import load_config
from multitask_vl.config.reproduces_schema import PublishedRow, ReproducesConfig
from multitask_vl.config.resources import CONFIGS_DIR
from multitask_vl.config.schema import Config
from multitask_vl.config.yaml_nodes import did_you_mean
from multitask_vl.errors import InputError

EXPERIMENTS_SECTION = "experiments"
"""Name of the generated section in docs/experiments.md; see `multitask_vl.reports.markers`."""
METRICS = {"vqa": "VQA", "gqa": "GQA", "nlvr2": "NLVR2", "coco_caption": "CIDEr", "average": "average"}
"""Key of a published score -> its column heading."""


@dataclass(frozen=True)
class Experiment:
    """A file of `configs/experiments`.

    Attributes:
        name: folder and file name without suffix, such as ``vl_pet/large``.
        path: the file.
        config: its configuration; `reproduces` is set.
    """

    name: str
    path: Path
    config: Config

    @property
    def reproduces(self) -> ReproducesConfig:
        """Its `reproduces:` block."""
        return self.config.reproduces

    @property
    def id(self) -> str:
        """The short name of the block; the name of the file if it has none."""
        return self.reproduces.id or self.name

    @property
    def published(self) -> tuple[PublishedRow, ...]:
        """The published rows of this configuration; empty if there are none."""
        return tuple(row for row in (self.reproduces, *self.reproduces.also) if row.paper)


def read_experiments(configs: Path | None = None) -> list[Experiment]:
    """Read all experiments, sorted by name. No model is built.

    Args:
        configs: folder of configurations; by default the project's.

    Raises:
        InputError: a file is invalid, has no `reproduces:` block, or repeats the id of another file.
    """
    folder = (configs or CONFIGS_DIR) / "experiments"
    experiments = [_read(path, folder) for path in sorted(folder.rglob("*.yaml"))]
    first: dict[str, Experiment] = {}
    problems = [
        f"{one.path}: reproduces.id: {one.id!r} is also the id of {first[one.id].path}"
        for one in experiments
        if first.setdefault(one.id, one) is not one
    ]
    if problems:
        raise InputError(problems)
    return experiments


def find_experiment(id_or_name: str, configs: Path | None = None) -> Experiment:
    """The experiment with an id (``adapter_single``) or name (``vl_adapter/single_adapter``).

    Raises:
        InputError: there is none; the message lists similar ids.
    """
    folder = (configs or CONFIGS_DIR) / "experiments"
    known: list[str] = []
    for path in sorted(folder.rglob("*.yaml")):
        # the block is not inherited, so its file alone has the id
        block = yaml.safe_load(path.read_text(encoding="utf-8")).get("reproduces") or {}
        names = (path.relative_to(folder).with_suffix("").as_posix(), block.get("id"))
        if id_or_name in names:
            return _read(path, folder)
        known += [name for name in names if name]
    raise InputError(f"unknown experiment {id_or_name!r}{did_you_mean(id_or_name, known)}")


def experiments_as_markdown(experiments: Iterable[Experiment], configs_url: str = "../configs") -> str:
    """One Markdown table per paper, with one line per published row.

    Args:
        experiments: sorted by name.
        configs_url: relative URL of the folder of configurations, seen from the page.
    """
    head = ("experiment", *METRICS.values(), "trained, published %", "trainable", "%", "source")
    rule = ("---", *["---:"] * (len(head) - 2), "---")
    tables = []
    for folder, members in groupby(experiments, key=lambda experiment: experiment.name.split("/")[0]):
        lines = [head, rule, *(line for experiment in members for line in _lines(experiment, configs_url))]
        tables.append(f"### {folder}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def _read(path: Path, folder: Path) -> Experiment:
    config = load_config(path)
    if config.reproduces is None:
        raise InputError(f"{path}: the block 'reproduces:' is missing; add it with at least trainable and total")
    return Experiment(path.relative_to(folder).with_suffix("").as_posix(), path, config)


def _lines(experiment: Experiment, configs_url: str) -> list[tuple[str, ...]]:
    link = f"[{experiment.name.split('/')[1]}]({configs_url}/experiments/{experiment.name}.yaml)"
    block = experiment.reproduces
    counts = (f"{block.trainable:,}", f"{100 * block.trainable / block.total:.2f}")
    lines = []
    for row in experiment.published or (PublishedRow(),):
        scores = (_cell(row.scores.get(metric), row.std.get(metric)) for metric in METRICS)
        lines.append((link, *scores, _cell(row.trained_percent), *counts, row.source or "nothing published"))
    return lines


def _cell(value: Decimal | None, std: Decimal | None = None) -> str:
    if value is None:
        return ""
    return f"{value}" if std is None else f"{value} ± {std}"
