"""What did a run take: parameters by component, steps and examples of each task, where the time went, on what."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from multitask_vl.reports.run import Run
from multitask_vl.reports.table import Column, Table, Value

PHASES = ("wait", "forward", "backward", "optimizer")


def parameters_of(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Trained parameters by component, where an adapter's own record is in the folder, and in all."""
    columns = [Column("component", "text")]
    for name in names:
        columns += [Column(_of(name, "trained", names), "count"), Column(_of(name, "in all", names), "count")]
    parts = [run.components for run in runs]
    rows = [
        (label, *(value for part in parts for value in _counts(part.get(label))))
        for label in dict.fromkeys(label for part in parts for label in part)
    ]
    totals: list[Value] = []
    shares: list[Value] = []
    for run in runs:
        counts = run.scores.parameters
        totals += [counts.trainable, counts.total]
        shares += [f"{100 * counts.trainable / counts.total:.2f} %" if counts.total else None, None]
    foot = (("all", *totals), ("share trained", *shares))
    return Table("Parameters", tuple(columns), tuple(row for row in rows if any(row[1:])), foot)


def mixture_of(runs: Sequence[Run], names: Sequence[str]) -> Table | None:
    """Steps and examples of each task; None where no run has kept them."""
    kept = [run.record.get("mixture") or {} for run in runs]
    if not any(kept):
        return None
    columns = [Column("task", "text")]
    for name in names:
        columns += [Column(_of(name, "steps", names), "count"), Column(_of(name, "examples", names), "count")]
    rows = []
    for task in dict.fromkeys(task for mixture in kept for task in mixture):
        row: list[Value] = [task]
        for mixture in kept:
            row += [mixture.get(task, {}).get("steps"), mixture.get(task, {}).get("examples")]
        rows.append(tuple(row))
    return Table("What it was trained on", tuple(columns), tuple(rows))


def time_of(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Machine and time of runs, a column each; what a run did not log is absent."""
    facts = [_facts(run) for run in runs]
    rows = [(label, *(one.get(label) for one in facts)) for label in dict.fromkeys(key for one in facts for key in one)]
    columns = (Column("what", "text"), *(Column(_of(name, "value", names), "text") for name in names))
    logged = any(row.time for run in runs for row in run.training)
    notes = ("Parts of a step are medians over the lines of metrics.jsonl.",) if logged else ()
    return Table("Time and machine", columns, tuple(rows), notes=notes)


def _of(name: str, what: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return what
    return name if what == "value" else f"{name}, {what}"


def _counts(component: dict[str, int] | None) -> tuple[Value, Value]:
    return (component["trainable"], component["total"]) if component else (None, None)


def _facts(run: Run) -> dict[str, str]:
    found: dict[str, str] = {}
    record = run.record
    if run.steps:
        found["steps"] = f"{run.steps:,}"
    if begun := record.get("started"):
        found["started"] = str(begun).replace("T", " ")
        if (spent := _minutes(begun, record.get("ended"))) is not None:
            found["start to end, evaluation included"] = f"{spent:,.1f} min"
    if resumes := record.get("resumes"):
        found["resumed"] = f"{len(resumes)} times, so the time from start to end has gaps"
    step_s = [row.time.get("step_s", row.wall_s) for row in run.training]
    if step_s := [value for value in step_s if value is not None]:
        found["a step"] = f"{1000 * statistics.median(step_s):,.0f} ms"
    for phase in PHASES:
        if parts := _logged(run, f"{phase}_s"):
            found[f"a step: {phase}"] = f"{1000 * statistics.median(parts):,.0f} ms"
    for key, label in (("tokens_per_s", "tokens a second"), ("images_per_s", "pictures a second")):
        if rates := _logged(run, key):
            found[label] = f"{statistics.median(rates):,.0f}"
    for key, label in (("rss_mib", "memory of the main process, most"), ("cuda_peak_mib", "GPU memory, most")):
        if peak := _logged(run, key):
            found[label] = f"{max(peak):,.0f} MiB"
    return found | _machine(record)


def _machine(record: dict[str, Any]) -> dict[str, str]:
    found = {}
    if devices := record.get("devices"):
        found["processes"] = str(record.get("processes", len(devices)))
        found["on"] = "; ".join(dict.fromkeys(map(str, devices)))
    for key, label in (("threads", "threads"), ("mixed_precision", "mixed precision"), ("torch", "torch")):
        if record.get(key) is not None:
            found[label] = str(record[key])
    code = record.get("code") or {}
    if code.get("version"):
        changed = ", with local changes" if code.get("dirty") else ""
        commit = f", commit {str(code['commit'])[:12]}" if code.get("commit") else ""
        found["code"] = f"{code['version']}{commit}{changed}"
    return found


def _logged(run: Run, key: str) -> list[float]:
    return [row.time[key] for row in run.training if key in row.time]


def _minutes(begun: str, ended: str | None) -> float | None:
    try:
        return (_moment(ended) - _moment(begun)).total_seconds() / 60 if ended else None
    except ValueError:
        return None


def _moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
