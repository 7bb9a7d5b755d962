"""How do a run's tables, curves and pictures become one HTML page that needs no other file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask_vl.errors import InputError
from multitask_vl.reports import tables
from multitask_vl.reports.analysis_section import inside, norm_table, read_analysis
from multitask_vl.reports.breakdowns import flattened, groups_of
from multitask_vl.reports.confusion import Confusion, confusion
from multitask_vl.reports.cost import mixture_of, parameters_of, time_of
from multitask_vl.reports.curves import loss_panels, score_panels
from multitask_vl.reports.figures import SVG_DASHES
from multitask_vl.reports.gallery import Scored, Shelf, gallery, read_predictions
from multitask_vl.reports.html import render_page, write_page
from multitask_vl.reports.images import picture_folders
from multitask_vl.reports.run import IntervalOf, Prediction, Run, read_run
from multitask_vl.reports.shuffled_control import check_control, control_command
from multitask_vl.reports.table import Table, cell

ITEMS = 12
TABLES = ("scores", "metrics", "kinds", "parameters", "mixture", "time", "norms")


def write_report(
    run: Path | str,
    control: Path | str | None = None,
    out: Path | str | None = None,
    items: int = ITEMS,
    split: str | None = None,
    images: Sequence[Path] = (),
) -> Path:
    """Write the page about a run folder.

    Args:
        run: the run folder.
        control: folder of its blind control, if there is one.
        out: the file to write; None: report.html in the run folder.
        items: gallery examples a task.
        split: split of the gallery; None: the first that was scored at the end.
        images: folders of pictures to search before those of the configuration.

    Returns:
        The file written.

    Raises:
        InputError: a piece of a folder is missing or malformed, or the control is not one.
    """
    page = report(read_run(run), read_run(control) if control else None, items, split, images)
    return write_page(Path(out) if out else Path(run) / "report.html", page)


def report(
    run: Run,
    control: Run | None = None,
    items: int = ITEMS,
    split: str | None = None,
    images: Sequence[Path] = (),
) -> str:
    """The page as text; see `write_report`."""
    notes = check_control(run, control, split) if control else []
    shown = tables.pick_split(run, split)
    folders = [*images, *picture_folders(run)]
    predictions, problems = _predictions(run, shown, strict=items > 0)
    others, unread = _others(control, shown) if control and items else ({}, [])
    shelves = gallery(run, shown, items, folders, predictions[shown], others) if items else []
    curves = {"this run": run} | ({"blind control": control} if control else {})
    names = [run.name]
    analysis = read_analysis(run.folder)
    groups = {name: groups_of(run, name, control, predictions[name]) for name in run.splits}
    return render_page(
        "report.html",
        run=run,
        control=control,
        control_notes=notes,
        control_command=control_command(run),
        facts=_facts(run, control),
        summary=_summary(run, control),
        scores=[tables.scores_of(run, name, control) for name in run.splits],
        metrics=[tables.metrics_of(run, name, control) for name in run.splits],
        groups=groups,
        groups_notes=[*_once(groups), *problems],
        confusions={name: _confusions(name, predictions[name]) for name in run.splits},
        spent=[t for t in (parameters_of([run], names), mixture_of([run], names), time_of([run], names)) if t],
        losses=loss_panels(curves),
        tuned=score_panels(curves),
        labels=list(curves),
        dashes=SVG_DASHES,
        shelves=shelves,
        inside=inside(analysis, folders, run.setting("clip.resize", "squash")) if analysis else None,
        norms=norm_table(analysis.norms) if analysis else None,
        gallery_split=shown,
        gallery_notes=[*missing_pictures(shelves, folders, f"python -m multitask_vl.reports {run.folder}"), *unread],
    )


def tables_of_run(run: Run, control: Run | None = None, split: str | None = None) -> dict[str, list[Table]]:
    """The tables of a run's page by name, for `formats.render`.

    Args:
        split: the only one to look at; None: all that the run reports.
    """
    splits = [tables.pick_split(run, split)] if split else run.splits
    predictions, _ = _predictions(run, splits[0], strict=False)
    groups = {name: groups_of(run, name, control, predictions[name]) for name in splits}
    mixture, analysis = mixture_of([run], [run.name]), read_analysis(run.folder)
    return {
        "scores": [tables.scores_of(run, name, control) for name in splits],
        "metrics": [tables.metrics_of(run, name, control) for name in splits],
        "kinds": [flattened(f"By kind of example, split {name}", some) for name, some in groups.items() if some],
        "parameters": [parameters_of([run], [run.name])],
        "mixture": [mixture] if mixture else [],
        "time": [time_of([run], [run.name])],
        "norms": [norm_table(analysis.norms)] if analysis else [],
    }


def _predictions(run: Run, shown: str, strict: bool) -> tuple[dict[str, dict[str, list[Prediction]]], list[str]]:
    """Split -> task -> predictions, and what kept some from being read; the gallery's split must be readable."""
    found: dict[str, dict[str, list[Prediction]]] = {}
    problems = []
    for split in dict.fromkeys([*run.splits, shown]):
        found[split] = {}
        try:
            found[split] = read_predictions(run, split)
        except InputError as error:
            if strict and split == shown:
                raise
            problems.append(f"Split {split} has no intervals and no confusions: {error.problems[0]}")
    return found, problems


def _once(groups: Mapping[str, Mapping[str, Sequence[Table]]]) -> list[str]:
    """Notes of many tables, each once."""
    kinds = (table for by_task in groups.values() for some in by_task.values() for table in some)
    return list(dict.fromkeys(note for table in kinds for note in table.notes))


def _others(control: Run, split: str) -> tuple[dict[str, Scored], list[str]]:
    """What the control wrote, for the cards; or why it cannot be shown."""
    try:
        found = read_predictions(control, split)
    except InputError as error:
        return {}, [f"The control's predictions are not shown: {error.problems[0]}"]
    return {"Blind control": {task: {one.id: one for one in rows} for task, rows in found.items()}}, []


def _confusions(split: str, predictions: Mapping[str, Sequence[Prediction]]) -> list[Confusion]:
    found = (confusion(f"{task}, split {split}", rows) for task, rows in predictions.items())
    return [one for one in found if one is not None]


def _facts(run: Run, control: Run | None) -> list[tuple[str, str, str]]:
    """What was run: name, value, and a smaller remark."""
    parameters = run.scores.parameters
    percent = 100 * parameters.trainable / parameters.total if parameters.total else None
    share = f"{cell(percent, 'percent')} % of {parameters.total:,}"
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
        ("Picture trunk", str(run.setting("clip.model", "?")), f"weights: {_weights(run, 'clip')}"),
        ("Steps", f"{run.steps:,}", _pace(run)),
        ("Seed", str(run.setting("seed", "?")), ""),
        ("Trainable parameters", f"{parameters.trainable:,}", share),
    ]
    if control:
        facts.append(("Blind control", control.name, "trained and tested with the features of other pictures"))
    return facts


def _pace(run: Run) -> str:
    words = [f"batch {run.setting('training.batch_size', '?')}, lr {run.setting('training.lr', '?')}"]
    times = [row.wall_s for row in run.training if row.wall_s is not None]
    return ", ".join([*words, *([f"median {statistics.median(times):.2g} s a step"] if times else [])])


def _weights(run: Run, part: str) -> str:
    return str(run.setting(f"{part}.pretrained", "random"))


def _summary(run: Run, control: Run | None) -> list[dict[str, Any]]:
    """The first split's scores for the cards on top: value, control and difference, and their places on a bar in %."""
    split = run.splits[0]
    cards = []
    for task in run.tasks(split):
        ours = run.scores.splits[split].tasks[task]
        theirs = control.scores.splits[split].tasks[task].value if control else None
        interval = ours.intervals.get(ours.headline)
        cards.append(_card(task, ours.headline, ours.value, theirs, interval))
    average = run.scores.splits[split].average
    theirs = control.scores.splits[split].average if control else None
    return [*cards, _card("average", f"of {len(cards)} tasks", average, theirs)]


def _card(
    name: str, metric: str, value: float | None, control: float | None, interval: IntervalOf | None = None
) -> dict[str, Any]:
    # CIDEr has no top at 100, so its bar is as long as the longer of the two.
    full = max(100.0, value or 0.0, control or 0.0)
    difference = None if value is None or control is None else value - control
    return {
        "name": name,
        "metric": metric,
        "value": value,
        "interval": interval,
        "control": control,
        "difference": difference,
        "bar": None if value is None else round(100 * max(value, 0.0) / full, 2),
        "mark": None if control is None else round(100 * max(control, 0.0) / full, 2),
    }


def missing_pictures(shelves: Sequence[Shelf], searched: Sequence[Path], command: str) -> list[str]:
    """A note on pictures that could not be shown, and the command that shows them."""
    pictures = [picture for shelf in shelves for item in shelf.items for picture in item.pictures]
    missing = [picture for picture in pictures if picture.problem]
    if not missing:
        return []
    folders = ", ".join(map(str, searched)) or "no folder: features.images is empty"
    return [
        f"{len(missing)} of {len(pictures)} pictures are not shown (first: {missing[0].key}, {missing[0].problem}). "
        f"Looked in {folders}. Run: {command} --images FOLDER"
    ]
