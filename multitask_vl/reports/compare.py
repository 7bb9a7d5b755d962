"""Comparison of several runs, as one HTML page or as tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multitask_vl.config.compatibility import training_settings
from multitask_vl.errors import InputError
from multitask_vl.reports import tables
from multitask_vl.reports.analysis_section import norm_panels, read_analysis
from multitask_vl.reports.cost import mixture_table, parameter_table, time_table
from multitask_vl.reports.curves import loss_panels, score_panels
from multitask_vl.reports.dot_plots import dot_panels
from multitask_vl.reports.figures import SERIES, SVG_DASHES, Panel
from multitask_vl.reports.gallery import ExampleGroup, example_group, read_predictions
from multitask_vl.reports.html import render_page
from multitask_vl.reports.images import image_folders, load_images
from multitask_vl.reports.options import GALLERY_ITEMS
from multitask_vl.reports.page import missing_image_notes
from multitask_vl.reports.paired import PairedPredictions, difference_table, group_difference_table, pair_predictions
from multitask_vl.reports.run import Prediction, Run
from multitask_vl.reports.table import Column, Table, Value
from multitask_vl.storage.hashing import text_sha256

PairsByLabel = dict[str, dict[str, PairedPredictions]]
"""Label of another run than the first -> task -> predictions for the same examples."""


@dataclass(frozen=True)
class Comparison:
    """Several runs and their paired predictions.

    Attributes:
        runs: label -> run; the others are compared with the first.
        splits: splits that at least one run reports.
        predictions: split -> label -> task -> predictions.
        pairs: split -> pairs of the first run with each other run.
        notes: what could not be compared, and why.
    """

    runs: dict[str, Run]
    splits: list[str]
    predictions: dict[str, dict[str, dict[str, list[Prediction]]]]
    pairs: dict[str, PairsByLabel]
    notes: list[str]

    @property
    def first(self) -> str:
        """Label of the run that the others are compared with."""
        return next(iter(self.runs))


def compare_runs(runs: Sequence[Run], split: str | None = None) -> Comparison:
    """Compare runs, which may differ in tasks, splits and examples.

    Args:
        runs: at least two; the others are compared with the first.
        split: the only split to compare; None: all reported splits.

    Raises:
        InputError: fewer than two runs, a repeated folder, a split that no run has, a task scored in different ways, or
            prediction files that are missing or malformed.
    """
    if len(runs) < 2:
        raise InputError(f"a comparison needs two or more runs, got {len(runs)}")
    labels = _labels(runs)
    by_label = dict(zip(labels, runs, strict=True))
    splits = [split] if split else list(dict.fromkeys(name for run in runs for name in run.splits))
    if split and not any(split in run.scores.splits for run in runs):
        known = ", ".join(dict.fromkeys(name for run in runs for name in run.scores.splits))
        raise InputError(f"--split: no run was scored on {split!r}; choose one of {known}")
    predictions: dict[str, dict[str, dict[str, list[Prediction]]]] = {}
    pairs: dict[str, PairsByLabel] = {}
    problems, notes = [], []
    for name in splits:
        scored = {label: run for label, run in by_label.items() if name in run.scores.splits}
        tables.shared_metrics(list(scored.values()), name)
        predictions[name] = {}
        for label, run in scored.items():
            try:
                predictions[name][label] = read_predictions(run, name)
            except InputError as error:
                problems += error.problems
        missing = [label for label in labels if label not in scored]
        if missing:
            notes.append(f"Split {name}: not scored by {', '.join(missing)}.")
        pairs[name] = _pairs(predictions[name], labels, name, notes)
    if problems:
        raise InputError(problems)
    try:
        tables.group_by_seed(runs)
    except InputError as error:
        # The same configuration and seed, e.g. with two versions of the code, can be compared but not averaged.
        notes.append(f"No means over seeds: {error.problems[0]}")
    return Comparison(by_label, splits, predictions, pairs, notes)


def comparison_tables(comparison: Comparison) -> dict[str, list[Table]]:
    """The tables of a comparison, by the names of `COMPARISON_TABLES`."""
    runs, names, first = list(comparison.runs.values()), list(comparison.runs), comparison.first
    differences = [
        difference_table(f"Difference to {first}, split {split}", first, pairs)
        for split, pairs in comparison.pairs.items()
        if pairs
    ]
    breakdowns = [
        group_difference_table(f"Difference to {first} by group, split {split}", first, pairs)
        for split, pairs in comparison.pairs.items()
    ]
    mixture = mixture_table(runs, names)
    return {
        "scores": [_score_table(comparison, split) for split in comparison.splits],
        "seeds": _seed_tables(comparison),
        "differences": differences,
        "breakdowns": [table for table in breakdowns if table],
        "parameters": [parameter_table(runs, names)],
        "mixture": [mixture] if mixture else [],
        "time": [time_table(runs, names)],
        "settings": [_settings_table(comparison)],
    }


def comparison_page(comparison: Comparison, items: int = GALLERY_ITEMS, images: Sequence[Path] = ()) -> str:
    """The comparison as HTML.

    Args:
        comparison: from `compare_runs`.
        items: gallery examples per task, chosen where the first run and another disagree.
        images: folders to search for images, before those of the configurations.
    """
    runs = list(comparison.runs.values())
    plotted = dict(list(comparison.runs.items())[: len(SERIES)])
    notes = list(comparison.notes)
    if len(plotted) < len(runs):
        notes.append(f"Charts show the first {len(plotted)} of {len(runs)} runs.")
    folders = list(dict.fromkeys([*images, *(path for run in runs for path in image_folders(run))]))
    gallery_split = next((split for split in comparison.splits if comparison.pairs[split]), None)
    groups = _disagreements(comparison, gallery_split, items, folders) if items and gallery_split else []
    command = f"multitask-vl compare {' '.join(str(run.folder) for run in runs)}"
    return render_page(
        "compare.html",
        comparison=comparison,
        tables=comparison_tables(comparison),
        notes_on_top=notes,
        dots={split: dot_panels(plotted, split) for split in comparison.splits},
        norms=_norm_panels(plotted),
        losses=loss_panels(plotted),
        score_curves=score_panels(plotted),
        labels=list(plotted),
        dashes=SVG_DASHES,
        groups=groups,
        gallery_split=gallery_split,
        gallery_notes=missing_image_notes(groups, folders, command),
    )


def _norm_panels(runs: Mapping[str, Run]) -> list[Panel]:
    """Weight changes of the runs that have an analysis; empty if fewer than two have one."""
    analysis_by_label = {label: read_analysis(run.folder) for label, run in runs.items()}
    norms = {label: analysis.norms for label, analysis in analysis_by_label.items() if analysis is not None}
    return norm_panels(norms) if len(norms) > 1 else []


def _labels(runs: Sequence[Run]) -> list[str]:
    folders = [run.folder.resolve() for run in runs]
    if repeated := [folder for folder, count in Counter(folders).items() if count > 1]:
        raise InputError(f"{repeated[0]}: repeated; name each run once")
    names = Counter(run.name for run in runs)
    return [run.name if names[run.name] == 1 else str(run.folder) for run in runs]


def _pairs(
    predictions: Mapping[str, Mapping[str, list[Prediction]]], labels: Sequence[str], split: str, notes: list[str]
) -> PairsByLabel:
    """Pairs of the first run with each other run; notes on tasks that only one was scored on go to ``notes``."""
    first = predictions.get(labels[0])
    if first is None:
        return {}
    pairs: PairsByLabel = {}
    for label in labels[1:]:
        other = predictions.get(label, {})
        common = [task for task in first if task in other]
        unshared = sorted(first.keys() ^ other.keys()) if other else []
        if unshared:
            notes.append(f"Split {split}: only one of {labels[0]} and {label} was scored on {', '.join(unshared)}.")
        if common:
            pairs[label] = {task: pair_predictions(first[task], other[task]) for task in common}
    return pairs


def _score_table(comparison: Comparison, split: str) -> Table:
    """Method, primary metrics and average of each run; runs that lack a task have no average."""
    scored = [run for run in comparison.runs.values() if split in run.scores.splits]
    metrics = tables.shared_metrics(scored, split)
    rows, notes = [], []
    for label, run in comparison.runs.items():
        scores = run.scores.splits[split].tasks if split in run.scores.splits else {}
        values = [scores[task].value if task in scores else None for task in metrics]
        average = None if None in values or not values else sum(values) / len(values)
        routing = ", ".join(filter(None, tables.describe_routing(run)))
        control = ", shuffled images" if run.is_control else ""
        rows.append((label, tables.describe_method(run) + control, routing, run.steps, *values, average))
        if scores:
            notes += [f"{label}, {note}" for note in tables.score_notes(run, split, "primary")]
    columns = (
        *(Column(name, "text") for name in ("run", "method", "routing")),
        Column("steps", "count"),
        *(Column(task) for task in (*metrics, "average")),
    )
    title = f"Split {split}: {', '.join(f'{task} {metric}' for task, metric in metrics.items())}"
    return Table(title, columns, tuple(rows), notes=tuple(notes))


def _seed_tables(comparison: Comparison) -> list[Table]:
    """Means over seeds on the splits that all runs have; empty if no two runs differ only in the seed."""
    runs = list(comparison.runs.values())
    try:
        if len(tables.group_by_seed(runs)) == len(runs):
            return []
    except InputError:  # already in the notes of `compare_runs`
        return []
    shared = [split for split in comparison.splits if all(split in run.scores.splits for run in runs)]
    return [tables.seed_table(runs, split) for split in shared]


def _settings_table(comparison: Comparison) -> Table:
    """Settings that differ between the runs; a task that some runs lack is one row."""
    runs = comparison.runs.values()
    settings = [training_settings(run.config, include_metrics=True) for run in runs]
    tasks = [set(run.setting("tasks", {})) for run in runs]
    unshared = [f"tasks.{task}" for task in sorted(set().union(*tasks)) if not all(task in one for one in tasks)]
    rows: list[tuple[Value, ...]] = [
        (name, *("present" if name.removeprefix("tasks.") in one else "absent" for one in tasks)) for name in unshared
    ]
    for key in sorted({key for one in settings for key in one}):
        values = [json.dumps(one[key], ensure_ascii=False) if key in one else None for one in settings]
        if len(set(values)) > 1 and not any(key.startswith(f"{name}.") for name in unshared):
            rows.append((key, *values))
    columns = (Column("setting", "text"), *(Column(label, "text") for label in comparison.runs))
    return Table("Settings that differ", columns, tuple(rows))


def _disagreements(comparison: Comparison, split: str, count: int, folders: Sequence[Path]) -> list[ExampleGroup]:
    """Examples that the first run and another score differently, half of them better in the first, half worse."""
    groups = []
    first = comparison.first
    for task, predictions in comparison.predictions[split][first].items():
        others = {
            label: {prediction.id: prediction for prediction in by_task[task].other}
            for label, by_task in comparison.pairs[split].items()
            if task in by_task
        }
        better, worse = [], []
        for one in sorted(predictions, key=lambda one: text_sha256(one.id)):
            gains = [by_id[one.id].score - one.score for by_id in others.values() if one.id in by_id]
            if any(gains):
                (worse if max(gains, key=abs) < 0 else better).append(one)
        chosen = better[: max(count - count // 2, count - len(worse))]
        chosen += worse[: count - len(chosen)]
        if not chosen:
            continue
        images = load_images(folders, [key for one in chosen for key in one.images])
        metric = comparison.runs[first].scores.splits[split].tasks[task].primary_metric
        groups.append(example_group(task, metric, predictions, chosen, images, others, first))
    return groups
