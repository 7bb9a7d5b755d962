"""Parameter counts of configurations, by component, next to the published percentages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from multitask_vl.config import load_config
from multitask_vl.config.reproduces_schema import PublishedRow
from multitask_vl.config.resources import CONFIGS_DIR
from multitask_vl.config.schema import BackboneConfig, Config, MethodConfig
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.reproduction.experiments import Experiment, find_experiment, read_experiments

PARAMETERS_SECTION = "parameters"
"""Name of the generated section of the documentation; see `multitask_vl.reports.markers`."""
BASE_COMPONENTS = ("language_model", "visual_embedding")
"""Components of every model; all others are added by methods."""
KNOWN_SIZES = {"facebook/bart-base": "bart_base_random", "google-t5/t5-base": "t5_base_random"}
"""Hub name of a backbone -> file of configs/backbones with its sizes, so that counting needs no network."""


def count_parameters(id_or_path: str | Path, overrides: Sequence[str] = ()) -> dict:
    """Parameter counts of an experiment or a configuration file, without weights, data or network.

    Args:
        id_or_path: id (``adapter_single``) or name (``vl_adapter/single_adapter``) of an experiment, or a YAML file.
        overrides: arguments such as ``method.rank=32``.

    Returns:
        As `parameter_report`.

    Raises:
        InputError: unknown experiment, or invalid configuration.
    """
    path = Path(id_or_path)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        path = find_experiment(str(id_or_path)).path
    return parameter_report(with_known_sizes(load_config(path, overrides)))


def parameter_report(config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> dict:
    """``{"trainable", "total", "components": {name: {"trainable", "total"}}}`` of the model of a configuration.

    The model is built on the meta device. The frozen vision encoder does not count.

    Args:
        config: the configuration.
        tokenizer: determines the size of the vocabulary. None: that of the backbone plus ``backbone.extra_tokens``.
    """
    model = build_model(config, tokenizer, device="meta")
    trainable, total = model.parameter_counts()
    return {"trainable": trainable, "total": total, "components": model.parameter_breakdown()}


def with_known_sizes(config: Config) -> Config:
    """The configuration with the sizes of a published backbone in place of its hub name."""
    name = KNOWN_SIZES.get(config.backbone.pretrained)
    if name is None:
        return config
    sizes: BackboneConfig = load_config(CONFIGS_DIR / "backbones" / f"{name}.yaml").backbone
    changes = {"pretrained": None, "tokenizer": None, "config": sizes.config}
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=changes)})


def component_text(report: dict) -> str:
    """A `parameter_report` as a table for the terminal."""
    rows = [*report["components"].items(), ("all", report)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'component':<{width}}  {'trainable':>13}  {'total':>13}  {'percent':>7}"]
    for name, count in rows:
        percent = 100 * count["trainable"] / count["total"]
        lines.append(f"{name:<{width}}  {count['trainable']:>13,}  {count['total']:>13,}  {percent:>6.2f}%")
    return "\n".join(lines)


@dataclass(frozen=True)
class ParameterRow:
    """Parameter counts of one experiment.

    Attributes:
        name: id of the experiment.
        method: methods and their sharing.
        backbone: hub name or family.
        trainable, total: parameters, excluding the frozen vision encoder.
        language_model, visual_embedding: trainable parameters of these components.
        added: parameters added by methods, all trainable.
        published: published rows with a percentage of trainable parameters.
    """

    name: str
    method: str
    backbone: str
    trainable: int
    total: int
    language_model: int
    visual_embedding: int
    added: int
    published: tuple[PublishedRow, ...]

    @property
    def percent(self) -> float:
        """Percentage of trainable parameters."""
        return 100 * self.trainable / self.total

    @property
    def matches_published(self) -> bool | None:
        """Whether the percentage, rounded to the published decimals, is the published one; None if there is none."""
        if not self.published:
            return None
        return all(round(self.percent, _decimals(row)) == float(row.trained_percent) for row in self.published)


def parameter_rows(experiments: Iterable[Experiment] | None = None) -> list[ParameterRow]:
    """Count the models of experiments; by default of all that have an id of their own.

    Raises:
        InputError: the counts differ from those of the `reproduces:` block.
    """
    if experiments is None:
        named = (experiment for experiment in read_experiments() if experiment.reproduces.id)
        experiments = sorted(named, key=lambda experiment: experiment.id)
    return [_row(experiment) for experiment in experiments]


def rows_as_text(rows: Iterable[ParameterRow]) -> str:
    """A table for the terminal."""
    lines = [HEAD, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in NUMERIC else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def rows_as_markdown(rows: Iterable[ParameterRow]) -> str:
    """A Markdown table."""
    rule = tuple("---:" if i in NUMERIC else "---" for i in range(len(HEAD)))
    return "\n".join(f"| {' | '.join(line)} |" for line in (HEAD, rule, *map(_cells, rows)))


def rows_as_json(rows: Iterable[ParameterRow]) -> list[dict]:
    """A list of dictionaries for JSON."""
    return [
        {
            "name": row.name,
            "method": row.method,
            "backbone": row.backbone,
            "trainable": row.trainable,
            "total": row.total,
            "percent": row.percent,
            "trained": {name: getattr(row, name) for name in (*BASE_COMPONENTS, "added")},
            "published": [
                published.model_dump(mode="json", include={"paper", "table", "trained_percent"})
                for published in row.published
            ],
            "matches_published": row.matches_published,
        }
        for row in rows
    ]


HEAD = (
    "experiment", "method", "backbone", "trainable of total", "percent", "language model", "visual embedding",
    "added", "published", "source",
)  # fmt: skip
NUMERIC = range(3, 9)
"""Columns of numbers, aligned to the right."""


def _row(experiment: Experiment) -> ParameterRow:
    config, block = experiment.config, experiment.reproduces
    report = parameter_report(with_known_sizes(config))
    if (report["trainable"], report["total"]) != (block.trainable, block.total):
        raise InputError(
            f"{experiment.path}: reproduces: {block.trainable:,} of {block.total:,} parameters; the model trains "
            f"{report['trainable']:,} of {report['total']:,}. Fix the block or the configuration"
        )
    trained = {name: count["trainable"] for name, count in report["components"].items()}
    return ParameterRow(
        name=experiment.id,
        method=" + ".join(_method(method) for method in config.method),
        backbone=config.backbone.pretrained or config.backbone.family,
        trainable=report["trainable"],
        total=report["total"],
        **{name: trained.pop(name) for name in BASE_COMPONENTS},
        added=sum(trained.values()),
        published=tuple(row for row in experiment.published if row.trained_percent is not None),
    )


def _method(method: MethodConfig) -> str:
    sharing = getattr(method, "sharing", None)
    return method.name if sharing is None else f"{method.name} ({sharing})"


def _decimals(row: PublishedRow) -> int:
    return -row.trained_percent.as_tuple().exponent


def _cells(row: ParameterRow) -> tuple[str, ...]:
    percents = dict.fromkeys(str(one.trained_percent) for one in row.published)
    return (
        row.name,
        row.method,
        row.backbone,
        f"{row.trainable:,} of {row.total:,}",
        f"{row.percent:.2f}",
        f"{row.language_model:,}",
        f"{row.visual_embedding:,}",
        f"{row.added:,}",
        " / ".join(percents) + (" (differs)" if row.matches_published is False else ""),
        "; ".join(f"{one.paper}, {one.table}" for one in row.published),
    )
