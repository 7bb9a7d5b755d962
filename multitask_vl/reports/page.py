"""The report of a run: tables, learning curves and example images in one self-contained HTML page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask_vl.errors import InputError
from multitask_vl.reports import tables
from multitask_vl.reports.analysis_section import analysis_section, norm_table, read_analysis
from multitask_vl.reports.breakdowns import breakdown_tables, merge_tables
from multitask_vl.reports.confusion import Confusion, confusion
from multitask_vl.reports.cost import mixture_table, parameter_table, time_table
from multitask_vl.reports.curves import loss_panels, score_panels
from multitask_vl.reports.figures import SVG_DASHES
from multitask_vl.reports.gallery import ExampleGroup, PredictionsByTask, gallery, read_predictions
from multitask_vl.reports.html import render_page, write_page
from multitask_vl.reports.images import image_folders
from multitask_vl.reports.options import GALLERY_ITEMS
from multitask_vl.reports.run import MetricInterval, Prediction, Run, read_run
from multitask_vl.reports.shuffled_control import check_control, control_command
from multitask_vl.reports.table import Table, format_value


def write_report(
    run: Path | str,
    control: Path | str | None = None,
    out: Path | str | None = None,
    items: int = GALLERY_ITEMS,
    split: str | None = None,
    images: Sequence[Path] = (),
) -> Path:
    """Write the report of a run folder.

    Args:
        run: the run folder.
        control: folder of its shuffled-image control, if there is one.
        out: file to write; None: report.html in the run folder.
        items: gallery examples per task.
        split: split of the gallery; None: the first final split.
        images: folders to search for images, before those of the configuration.

    Returns:
        The written file.

    Raises:
        InputError: a file is missing or malformed, or ``control`` is not a control of ``run``.
    """
    page = render_report(read_run(run), read_run(control) if control else None, items, split, images)
    return write_page(Path(out) if out else Path(run) / "report.html", page)


def render_report(
    run: Run,
    control: Run | None = None,
    items: int = GALLERY_ITEMS,
    split: str | None = None,
    images: Sequence[Path] = (),
) -> str:
    """The report as HTML; see `write_report`."""
    control_notes = check_control(run, control, split) if control else []
    gallery_split = tables.pick_split(run, split)
    folders = [*images, *image_folders(run)]
    predictions, problems = _predictions(run, gallery_split, strict=items > 0)
    others, unreadable = _control_predictions(control, gallery_split) if control and items else ({}, [])
    groups = gallery(run, gallery_split, items, folders, predictions[gallery_split], others) if items else []
    curves = {"this run": run} | ({"shuffled-image control": control} if control else {})
    names = [run.name]
    analysis = read_analysis(run.folder)
    breakdowns = {name: breakdown_tables(run, name, control, predictions[name]) for name in run.splits}
    cost = (parameter_table([run], names), mixture_table([run], names), time_table([run], names))
    return render_page(
        "report.html",
        run=run,
        control=control,
        control_notes=control_notes,
        control_command=control_command(run),
        facts=_facts(run, control),
        summary=_summary(run, control),
        scores=[tables.score_table(run, name, control) for name in run.splits],
        metrics=[tables.metric_table(run, name, control) for name in run.splits],
        breakdowns=breakdowns,
        breakdown_notes=[*_unique_notes(breakdowns), *problems],
        confusions={name: _confusions(name, predictions[name]) for name in run.splits},
        cost=[table for table in cost if table],
        losses=loss_panels(curves),
        score_curves=score_panels(curves),
        labels=list(curves),
        dashes=SVG_DASHES,
        groups=groups,
        analysis=analysis_section(analysis, folders, run.setting("vision.resize", "squash")) if analysis else None,
        norms=norm_table(analysis.norms) if analysis else None,
        gallery_split=gallery_split,
        gallery_notes=[*missing_image_notes(groups, folders, f"multitask-vl report {run.folder}"), *unreadable],
    )


def run_tables(run: Run, control: Run | None = None, split: str | None = None) -> dict[str, list[Table]]:
    """The tables of a run's report, by the names of `RUN_TABLES`.

    Args:
        split: the only split to include; None: all reported splits.
    """
    splits = [tables.pick_split(run, split)] if split else run.splits
    predictions, _ = _predictions(run, splits[0], strict=False)
    breakdowns = {name: breakdown_tables(run, name, control, predictions[name]) for name in splits}
    mixture, analysis = mixture_table([run], [run.name]), read_analysis(run.folder)
    return {
        "scores": [tables.score_table(run, name, control) for name in splits],
        "metrics": [tables.metric_table(run, name, control) for name in splits],
        "breakdowns": [
            merge_tables(f"Breakdowns, split {name}", by_task) for name, by_task in breakdowns.items() if by_task
        ],
        "parameters": [parameter_table([run], [run.name])],
        "mixture": [mixture] if mixture else [],
        "time": [time_table([run], [run.name])],
        "norms": [norm_table(analysis.norms)] if analysis else [],
    }


def missing_image_notes(groups: Sequence[ExampleGroup], searched: Sequence[Path], command: str) -> list[str]:
    """A note on images that a gallery cannot show.

    Args:
        groups: the gallery.
        searched: folders that were searched.
        command: command of the page, to which ``--images FOLDER`` can be added.
    """
    images = [image for group in groups for item in group.items for image in item.images]
    missing = [image for image in images if image.problem]
    if not missing:
        return []
    folders = ", ".join(map(str, searched)) or "no folder: features.images is empty"
    return [
        f"{len(missing)} of {len(images)} images are not shown (first: {missing[0].key}, {missing[0].problem}). "
        f"Searched {folders}. Run: {command} --images FOLDER"
    ]


def _predictions(
    run: Run, gallery_split: str, strict: bool
) -> tuple[dict[str, dict[str, list[Prediction]]], list[str]]:
    """Split -> task -> predictions, and notes on splits whose predictions cannot be read.

    Args:
        strict: whether to raise if those of the gallery's split cannot be read.
    """
    predictions: dict[str, dict[str, list[Prediction]]] = {}
    problems = []
    for split in dict.fromkeys([*run.splits, gallery_split]):
        predictions[split] = {}
        try:
            predictions[split] = read_predictions(run, split)
        except InputError as error:
            if strict and split == gallery_split:
                raise
            problems.append(f"Split {split} has no intervals and no confusion tables: {error.problems[0]}")
    return predictions, problems


def _unique_notes(breakdowns: Mapping[str, Mapping[str, Sequence[Table]]]) -> list[str]:
    of_tasks = (table for by_task in breakdowns.values() for of_task in by_task.values() for table in of_task)
    return list(dict.fromkeys(note for table in of_tasks for note in table.notes))


def _control_predictions(control: Run, split: str) -> tuple[dict[str, PredictionsByTask], list[str]]:
    """Predictions of the control by label, and a note if they cannot be read."""
    try:
        predictions = read_predictions(control, split)
    except InputError as error:
        return {}, [f"The predictions of the control are not shown: {error.problems[0]}"]
    by_task = {task: {one.id: one for one in of_task} for task, of_task in predictions.items()}
    return {"Shuffled-image control": by_task}, []


def _confusions(split: str, predictions: Mapping[str, Sequence[Prediction]]) -> list[Confusion]:
    confusions = (confusion(f"{task}, split {split}", of_task) for task, of_task in predictions.items())
    return [one for one in confusions if one is not None]


def _facts(run: Run, control: Run | None) -> list[tuple[str, str, str]]:
    """Facts for the head of the page: name, value and details."""
    parameters = run.scores.parameters
    percent = 100 * parameters.trainable / parameters.total if parameters.total else None
    share = f"{format_value(percent, 'percent')} % of {parameters.total:,}"
    methods = run.setting("method", [])
    methods = methods if isinstance(methods, list) else [methods]
    details = "; ".join(
        ", ".join(f"{key} {value}" for key, value in method.items() if key not in ("name", "sharing") and value)
        for method in methods
        if isinstance(method, dict)
    )
    facts = [
        ("Method", tables.describe_method(run), details),
        ("Routing", *tables.describe_routing(run)),
        ("Backbone", str(run.setting("backbone.family", "?")), f"weights: {_weights(run, 'backbone')}"),
        ("Vision encoder", str(run.setting("vision.model", "?")), f"weights: {_weights(run, 'vision')}"),
        ("Steps", f"{run.steps:,}", _hyperparameters(run)),
        ("Seed", str(run.setting("seed", "?")), ""),
        ("Trainable parameters", f"{parameters.trainable:,}", share),
    ]
    if control:
        facts.append(("Shuffled-image control", control.name, "trained and tested with the features of other images"))
    return facts


def _hyperparameters(run: Run) -> str:
    parts = [
        f"batch size {run.setting('training.batch_size', '?')}",
        f"learning rate {run.setting('training.lr', '?')}",
    ]
    times = [row.wall_s for row in run.training if row.wall_s is not None]
    return ", ".join([*parts, *([f"median {statistics.median(times):.2g} s per step"] if times else [])])


def _weights(run: Run, section: str) -> str:
    return str(run.setting(f"{section}.pretrained", "random"))


def _summary(run: Run, control: Run | None) -> list[dict[str, Any]]:
    """Cards with the scores of the first split: one per task, then the average."""
    split = run.splits[0]
    cards = []
    for task in run.tasks(split):
        scores = run.scores.splits[split].tasks[task]
        control_score = control.scores.splits[split].tasks[task].value if control else None
        interval = scores.intervals.get(scores.primary_metric)
        cards.append(_card(task, scores.primary_metric, scores.value, control_score, interval))
    average = run.scores.splits[split].average
    control_average = control.scores.splits[split].average if control else None
    return [*cards, _card("average", f"of {len(cards)} tasks", average, control_average)]


def _card(
    name: str, metric: str, value: float | None, control: float | None, interval: MetricInterval | None = None
) -> dict[str, Any]:
    # CIDEr may exceed 100; the bar is then scaled to the larger of the two scores.
    full = max(100.0, value or 0.0, control or 0.0)
    difference = None if value is None or control is None else value - control
    return {
        "name": name,
        "metric": metric,
        "value": value,
        "interval": interval,
        "control": control,
        "difference": difference,
        "bar_percent": None if value is None else round(100 * max(value, 0.0) / full, 2),
        "tick_percent": None if control is None else round(100 * max(control, 0.0) / full, 2),
    }
