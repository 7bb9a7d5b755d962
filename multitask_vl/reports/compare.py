"""How do several runs compare: one page, or its tables, made from their folders alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.reports import tables
from multitask_vl.reports.analysis_section import norm_panels, read_analysis
from multitask_vl.reports.cost import mixture_of, parameters_of, time_of
from multitask_vl.reports.curves import loss_panels, score_panels
from multitask_vl.reports.dot_plots import dot_panels
from multitask_vl.reports.figures import SERIES, SVG_DASHES, Panel
from multitask_vl.reports.gallery import Shelf, read_predictions, shelf
from multitask_vl.reports.html import render_page
from multitask_vl.reports.images import load_pictures, picture_folders
from multitask_vl.reports.page import ITEMS, missing_pictures
from multitask_vl.reports.paired import Pairs, differences_of, kinds_of, pair
from multitask_vl.reports.run import Prediction, Run
from multitask_vl.reports.shuffled_control import flat
from multitask_vl.reports.table import Column, Table, Value

TABLES = ("scores", "seeds", "differences", "kinds", "parameters", "mixture", "time", "settings")


@dataclass(frozen=True)
class Comparison:
    """Several runs, read, and what they have in common.

    Attributes:
        runs: label -> run; the first is what others are compared with.
        splits: that at least one run reports, in the order of the runs.
        predictions: split -> label -> task -> predictions.
        pairs: split -> label of another run than the first -> task -> what both were scored on.
        notes: what could not be compared, and why.
    """

    runs: dict[str, Run]
    splits: list[str]
    predictions: dict[str, dict[str, dict[str, list[Prediction]]]]
    pairs: dict[str, dict[str, dict[str, Pairs]]]
    notes: list[str]

    @property
    def first(self) -> str:
        """Label of the run that others are compared with."""
        return next(iter(self.runs))


def compared(runs: Sequence[Run], split: str | None = None) -> Comparison:
    """What there is to say about several runs; they need not have the same tasks, splits or examples.

    Args:
        runs: at least two; the first is what others are compared with.
        split: the only split to look at; None: all that are reported.

    Raises:
        InputError: fewer than two runs, a folder twice, a split that no run has, one task scored in two ways, or
            prediction files that are missing or malformed.
    """
    if len(runs) < 2:
        raise InputError(f"a comparison needs two runs or more, got {len(runs)}")
    labels = _labels(runs)
    named = dict(zip(labels, runs, strict=True))
    splits = [split] if split else list(dict.fromkeys(name for run in runs for name in run.splits))
    if split and not any(split in run.scores.splits for run in runs):
        known = ", ".join(dict.fromkeys(name for run in runs for name in run.scores.splits))
        raise InputError(f"--split: no run was scored on {split!r} (there are: {known})")
    predictions: dict[str, dict[str, dict[str, list[Prediction]]]] = {}
    pairs: dict[str, dict[str, dict[str, Pairs]]] = {}
    problems, notes = [], []
    for name in splits:
        having = {label: run for label, run in named.items() if name in run.scores.splits}
        tables.shared_columns(list(having.values()), name)
        predictions[name] = {}
        for label, run in having.items():
            try:
                predictions[name][label] = read_predictions(run, name)
            except InputError as error:
                problems += error.problems
        absent = [label for label in labels if label not in having]
        if absent:
            notes.append(f"Split {name}: not scored by {', '.join(absent)}.")
        pairs[name] = _pairs(predictions[name], labels, name, notes)
    if problems:
        raise InputError(problems)
    try:
        tables.by_seed(runs)
    except InputError as error:
        # one configuration and seed twice, say by two versions of the code: fine to compare, not to count
        notes.append(f"No means over seeds: {error.problems[0]}")
    return Comparison(named, splits, predictions, pairs, notes)


def tables_of(found: Comparison) -> dict[str, list[Table]]:
    """Every table of a comparison, by the names of `TABLES`."""
    runs, names = list(found.runs.values()), list(found.runs)
    scores = [_scores(found, split) for split in found.splits]
    differences = [
        differences_of(f"Difference to {found.first}, split {split}", found.first, pairs)
        for split, pairs in found.pairs.items()
        if pairs
    ]
    kinds = [
        kinds_of(f"Difference to {found.first} by kind of example, split {split}", found.first, pairs)
        for split, pairs in found.pairs.items()
    ]
    mixture = mixture_of(runs, names)
    return {
        "scores": scores,
        "seeds": _seeds(found),
        "differences": differences,
        "kinds": [one for one in kinds if one],
        "parameters": [parameters_of(runs, names)],
        "mixture": [mixture] if mixture else [],
        "time": [time_of(runs, names)],
        "settings": [_settings(found)],
    }


def comparison_page(found: Comparison, items: int = ITEMS, images: Sequence[Path] = ()) -> str:
    """The page as text.

    Args:
        items: examples a task of the gallery, in which the first run and another do not agree.
        images: folders of pictures to search before those of the configurations.
    """
    written = tables_of(found)
    drawn = dict(list(found.runs.items())[: len(SERIES)])
    notes = list(found.notes)
    if len(drawn) < len(found.runs):
        notes.append(f"Curves are those of the first {len(drawn)} of {len(found.runs)} runs.")
    folders = list(dict.fromkeys([*images, *(path for run in found.runs.values() for path in picture_folders(run))]))
    shown = next((split for split in found.splits if found.pairs[split]), None)
    shelves = _disagreements(found, shown, items, folders) if items and shown else []
    command = f"python launch/compare.py {' '.join(str(run.folder) for run in found.runs.values())}"
    return render_page(
        "compare.html",
        comparison=found,
        written=written,
        notes_on_top=notes,
        dots={split: dot_panels(drawn, split) for split in found.splits},
        norms=_norms(drawn),
        losses=loss_panels(drawn),
        tuned=score_panels(drawn),
        labels=list(drawn),
        dashes=SVG_DASHES,
        shelves=shelves,
        gallery_split=shown,
        gallery_notes=missing_pictures(shelves, folders, command),
    )


def _norms(runs: Mapping[str, Run]) -> list[Panel]:
    """How far training moved the bottlenecks, for the runs that were looked into by `launch/analyze.py`."""
    found = {label: read_analysis(run.folder) for label, run in runs.items()}
    known = {label: one.norms for label, one in found.items() if one is not None}
    return norm_panels(known) if len(known) > 1 else []


def _labels(runs: Sequence[Run]) -> list[str]:
    folders = [run.folder.resolve() for run in runs]
    if twice := [folder for folder, times in Counter(folders).items() if times > 1]:
        raise InputError(f"{twice[0]}: named twice; name each run once")
    names = Counter(run.name for run in runs)
    return [run.name if names[run.name] == 1 else str(run.folder) for run in runs]


def _pairs(
    predictions: Mapping[str, Mapping[str, list[Prediction]]], labels: Sequence[str], split: str, notes: list[str]
) -> dict[str, dict[str, Pairs]]:
    first = predictions.get(labels[0])
    if first is None:
        return {}
    found: dict[str, dict[str, Pairs]] = {}
    for label in labels[1:]:
        theirs = predictions.get(label, {})
        common = [task for task in first if task in theirs]
        odd = sorted(first.keys() ^ theirs.keys()) if theirs else []
        if odd:
            notes.append(f"Split {split}: only one of {labels[0]} and {label} was scored on {', '.join(odd)}.")
        if common:
            found[label] = {task: pair(first[task], theirs[task]) for task in common}
    return found


def _scores(found: Comparison, split: str) -> Table:
    """A row a run: what it is, its headline scores, and their mean where it has them all."""
    having = [run for run in found.runs.values() if split in run.scores.splits]
    tasks = tables.shared_columns(having, split)
    rows, notes = [], []
    for label, run in found.runs.items():
        scores = run.scores.splits[split].tasks if split in run.scores.splits else {}
        values = [scores[task].value if task in scores else None for task in tasks]
        average = None if None in values or not values else sum(values) / len(values)
        routing = ", ".join(filter(None, tables.describe_routing(run)))
        blind = ", blind" if run.is_control else ""
        rows.append((label, tables.describe_method(run) + blind, routing, run.steps, *values, average))
        if scores:
            notes += [f"{label}, {note}" for note in tables.notes_of(run, split, "headline")]
    words = (Column("run", "text"), Column("method", "text"), Column("routing", "text"), Column("steps", "count"))
    ways = ", ".join(f"{task} {metric}" for task, metric in tasks.items())
    columns = (*words, *(Column(task) for task in tasks), Column("average"))
    return Table(f"Split {split}: {ways}", columns, tuple(rows), notes=tuple(notes))


def _seeds(found: Comparison) -> list[Table]:
    """Means over seeds, for the splits that all runs have, where some runs differ by the seed alone."""
    runs = list(found.runs.values())
    try:
        if len(tables.by_seed(runs)) == len(runs):
            return []
    except InputError:  # `compared` has noted it
        return []
    shared = [split for split in found.splits if all(split in run.scores.splits for run in runs)]
    return [tables.compare(runs, split) for split in shared]


def _settings(found: Comparison) -> Table:
    """Settings that are not the same in all runs; a task that one lacks is one row."""
    every = [flat(run.config) for run in found.runs.values()]
    tasks = [set(run.setting("tasks", {})) for run in found.runs.values()]
    odd = [f"tasks.{task}" for task in sorted(set().union(*tasks)) if not all(task in one for one in tasks)]
    rows: list[tuple[Value, ...]] = [
        (name, *("there" if name.removeprefix("tasks.") in one else "absent" for one in tasks)) for name in odd
    ]
    for key in sorted({key for one in every for key in one}):
        values = [json.dumps(one[key], ensure_ascii=False) if key in one else None for one in every]
        if len(set(values)) > 1 and not any(key.startswith(f"{name}.") for name in odd):
            rows.append((key, *values))
    columns = (Column("setting", "text"), *(Column(label, "text") for label in found.runs))
    return Table("Settings that differ", columns, tuple(rows))


def _disagreements(found: Comparison, split: str, count: int, folders: Sequence[Path]) -> list[Shelf]:
    """Examples on which the first run and another score differently: half of them better by the first, half worse."""
    shelves = []
    predictions = found.predictions[split]
    for task, everything in predictions[found.first].items():
        others = {
            label: {one.id: one for one in tasks[task].other}
            for label, tasks in found.pairs[split].items()
            if task in tasks
        }
        better, worse = [], []
        for one in sorted(everything, key=lambda one: hashlib.sha256(one.id.encode()).digest()):
            gains = [theirs[one.id].score - one.score for theirs in others.values() if one.id in theirs]
            if any(gains):
                (worse if max(gains, key=abs) < 0 else better).append(one)
        chosen = better[: max(count - count // 2, count - len(worse))]
        chosen += worse[: count - len(chosen)]
        if not chosen:
            continue
        pictures = load_pictures(folders, [key for one in chosen for key in one.images])
        metric = found.runs[found.first].scores.splits[split].tasks[task].headline
        shelves.append(shelf(task, metric, everything, chosen, pictures, others, found.first))
    return shelves
