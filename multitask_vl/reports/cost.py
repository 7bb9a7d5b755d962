"""Tables of what a run cost: parameters by component, training mixture, time per step and hardware."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from multitask_vl.reports.run import Run
from multitask_vl.reports.table import Column, Table, Value

PHASES = ("wait", "forward", "backward", "optimizer")


def parameter_table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Trainable and total parameters; by component where the run folder has a saved adapter."""
    columns = [Column("component", "text")]
    for name in names:
        columns += [
            Column(_column_name(name, "trainable", names), "count"),
            Column(_column_name(name, "total", names), "count"),
        ]
    components = [run.components for run in runs]
    rows = [
        (label, *(value for of_run in components for value in _counts(of_run.get(label))))
        for label in dict.fromkeys(label for of_run in components for label in of_run)
    ]
    totals: list[Value] = []
    percents: list[Value] = []
    for run in runs:
        counts = run.scores.parameters
        totals += [counts.trainable, counts.total]
        percents += [f"{100 * counts.trainable / counts.total:.2f} %" if counts.total else None, None]
    foot = (("all", *totals), ("percent trainable", *percents))
    return Table("Parameters", tuple(columns), tuple(row for row in rows if any(row[1:])), foot)


def mixture_table(runs: Sequence[Run], names: Sequence[str]) -> Table | None:
    """Training steps and examples per task; None if no run recorded them."""
    mixtures = [run.record.get("mixture") or {} for run in runs]
    if not any(mixtures):
        return None
    columns = [Column("task", "text")]
    for name in names:
        columns += [
            Column(_column_name(name, "steps", names), "count"),
            Column(_column_name(name, "examples", names), "count"),
        ]
    rows = []
    for task in dict.fromkeys(task for mixture in mixtures for task in mixture):
        row: list[Value] = [task]
        for mixture in mixtures:
            row += [mixture.get(task, {}).get("steps"), mixture.get(task, {}).get("examples")]
        rows.append(tuple(row))
    return Table("Training mixture", tuple(columns), tuple(rows))


def time_table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Time and hardware, one column per run. Quantities that a run did not log are None."""
    facts = [_facts(run) for run in runs]
    labels = dict.fromkeys(label for of_run in facts for label in of_run)
    rows = [(label, *(of_run.get(label) for of_run in facts)) for label in labels]
    columns = (
        Column("quantity", "text"),
        *(Column(_column_name(name, "value", names), "text") for name in names),
    )
    logged = any(row.time for run in runs for row in run.training)
    notes = ("Times per step are medians over the lines of metrics.jsonl.",) if logged else ()
    return Table("Time and hardware", columns, tuple(rows), notes=notes)


def _column_name(name: str, quantity: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return quantity
    return name if quantity == "value" else f"{name}, {quantity}"


def _counts(component: dict[str, int] | None) -> tuple[Value, Value]:
    return (component["trainable"], component["total"]) if component else (None, None)


def _facts(run: Run) -> dict[str, str]:
    """Label -> value of everything that is known about the time and hardware of a run."""
    facts: dict[str, str] = {}
    record = run.record
    if run.steps:
        facts["steps"] = f"{run.steps:,}"
    if started := record.get("started"):
        facts["started"] = str(started).replace("T", " ")
        if (minutes := _minutes(started, record.get("ended"))) is not None:
            facts["start to end, evaluation included"] = f"{minutes:,.1f} min"
    if resumes := record.get("resumes"):
        facts["resumed"] = f"{len(resumes)} times; the time from start to end includes the interruptions"
    step_s = [row.time.get("step_s", row.wall_s) for row in run.training]
    if step_s := [value for value in step_s if value is not None]:
        facts["time per step"] = f"{1000 * statistics.median(step_s):,.0f} ms"
    for phase in PHASES:
        if phase_s := _logged(run, f"{phase}_s"):
            facts[f"time per step: {phase}"] = f"{1000 * statistics.median(phase_s):,.0f} ms"
    for key, label in (("tokens_per_s", "tokens per second"), ("images_per_s", "images per second")):
        if rates := _logged(run, key):
            facts[label] = f"{statistics.median(rates):,.0f}"
    for key, label in (("rss_mib", "peak memory of the main process"), ("cuda_peak_mib", "peak GPU memory")):
        if peak := _logged(run, key):
            facts[label] = f"{max(peak):,.0f} MiB"
    return facts | _hardware(record)


def _hardware(record: dict[str, Any]) -> dict[str, str]:
    facts = {}
    if devices := record.get("devices"):
        facts["processes"] = str(record.get("processes", len(devices)))
        facts["devices"] = "; ".join(dict.fromkeys(map(str, devices)))
    for key, label in (("threads", "threads"), ("mixed_precision", "mixed precision"), ("torch", "torch")):
        if record.get(key) is not None:
            facts[label] = str(record[key])
    code = record.get("code") or {}
    if code.get("version"):
        changed = ", with uncommitted changes" if code.get("dirty") else ""
        commit = f", commit {str(code['commit'])[:12]}" if code.get("commit") else ""
        facts["code"] = f"{code['version']}{commit}{changed}"
    return facts


def _logged(run: Run, key: str) -> list[float]:
    return [row.time[key] for row in run.training if key in row.time]


def _minutes(started: str, ended: str | None) -> float | None:
    try:
        return (_parse_time(ended) - _parse_time(started)).total_seconds() / 60 if ended else None
    except ValueError:
        return None


def _parse_time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
