"""Results of a study run, read from its run folder without loading the model."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multitask_vl.reports.table import MeanStd, mean_std
from multitask_vl.synthetic.language import QUESTIONS
from studies.records import commit_label
from studies.synthetic_world.runs import REPEAT, SEEDS, StudyRun

TASKS = {"vqa": "VQA", "gqa": "GQA", "nlvr2": "NLVR2", "coco_caption": "CIDEr"}
EXISTENCE = "existence"
"""The part of VQA that asks whether an object exists."""
_EXISTENCE = re.compile(
    "|".join(re.escape(wording).replace(r"\{x\}", "[a-z ]+") for wording in QUESTIONS["exist"].seen)
)
LEFT_RIGHT = "left_right"
"""The part of NLVR2 whose statements name a side, which requires telling the two images apart."""
_LEFT_RIGHT = re.compile(r".*\b(left|right)\b.*")
_EDGE = 0.2
"""Fraction of the steps that counts as the start, and as the end, of training."""


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        scores: split -> task, `EXISTENCE` or `LEFT_RIGHT` -> score.
        losses: task -> mean training loss over the first and over the last fifth of the steps.
        max_late_loss: largest training loss of any task, logged in the second half of the steps.
        cpu_s: processor time of the whole command in seconds; None if unknown.
        steps: number of training steps.
        trainable_percent: trainable parameters in percent of all.
        step_ms: median time of a training step in milliseconds; None if unknown.
        commit: commit of the code that ran, with a star if the working tree had changes.
    """

    run: StudyRun
    scores: dict[str, dict[str, float]]
    losses: dict[str, tuple[float, float]]
    max_late_loss: float
    cpu_s: float | None
    steps: int
    trainable_percent: float
    step_ms: float | None
    commit: str


Results = Mapping[str, Sequence[Result]]
"""``group: row`` -> its finished runs."""


def read_finished(runs: Sequence[StudyRun], out: Path) -> dict[str, list[Result]]:
    """Results of the finished runs by "group: row", in the order of the runs."""
    results: dict[str, list[Result]] = {}
    for run in runs:
        if (out / "runs" / run.name / "scores.json").is_file():
            results.setdefault(f"{run.group}: {run.row}", []).append(read_result(run, out))
    return results


def failed_runs(runs: Sequence[StudyRun], out: Path) -> list[str]:
    """One line per run that ended with an error: its name, exit code and last line of the log."""
    lines = []
    for run in runs:
        cost, log = out / "costs" / f"{run.name}.json", out / "logs" / f"{run.name}.log"
        if cost.is_file() and not (out / "runs" / run.name / "scores.json").is_file():
            code, messages = json.loads(cost.read_text())["exit"], log.read_text().splitlines()
            lines.append(f"{run.name}, exit code {code}: {messages[-1] if messages else ''}")
    return lines


def read_result(run: StudyRun, out: Path) -> Result:
    """The result of a finished run."""
    folder, cost = out / "runs" / run.name, out / "costs" / f"{run.name}.json"
    provenance = folder / "record.json"
    final = json.loads((folder / "scores.json").read_text())
    scores = {}
    for split, entry in final["splits"].items():
        scores[split] = {task: one["value"] for task, one in entry["tasks"].items()}
        if "vqa" in scores[split]:
            scores[split][EXISTENCE] = matching_accuracy(folder / "predictions" / "vqa", split, _EXISTENCE)
        if "nlvr2" in scores[split]:
            scores[split][LEFT_RIGHT] = matching_accuracy(folder / "predictions" / "nlvr2", split, _LEFT_RIGHT)
        scores[split]["average"] = entry["average"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    counts = final["parameters"]
    return Result(
        run=run,
        scores=scores,
        losses=initial_and_final_losses(rows, final["step"]),
        max_late_loss=max(row["loss"] for row in rows if row["step"] > final["step"] / 2),
        cpu_s=json.loads(cost.read_text())["cpu_s"] if cost.is_file() else None,
        steps=final["step"],
        trainable_percent=100 * counts["trainable"] / counts["total"],
        step_ms=1000 * statistics.median(row["wall_s"] for row in rows),
        commit=commit_label(json.loads(provenance.read_text()) if provenance.is_file() else {}),
    )


def matching_accuracy(folder: Path, split: str, pattern: re.Pattern[str]) -> float:
    """Mean score, 0-100, of the examples of a run whose text matches the pattern."""
    scores = json.loads((folder / f"{split}.per_example.json").read_text())
    rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    return statistics.mean(scores[row["id"]] for row in rows if pattern.fullmatch(row["text"]))


def initial_and_final_losses(rows: Sequence[dict], steps: int) -> dict[str, tuple[float, float]]:
    """Task -> mean logged loss of the first and of the last fifth of the steps.

    Tasks without a logged loss in either fifth are skipped.
    """
    losses = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        first = [row["loss"] for row in rows if row["task"] == task and row["step"] <= _EDGE * steps]
        last = [row["loss"] for row in rows if row["task"] == task and row["step"] > (1 - _EDGE) * steps]
        if first and last:
            losses[task] = (statistics.mean(first), statistics.mean(last))
    return losses


def mean_score(results: Sequence[Result], split: str, name: str) -> MeanStd | None:
    """Mean and sample standard deviation of a score over runs; None if a run lacks it."""
    return mean_std([result.scores.get(split, {}).get(name) for result in results])


def curve_points(results: Results, group: str) -> list[tuple[str, Sequence[Result]]]:
    """(value, results) of a curve in increasing order; empty if none of the curve's own runs has finished.

    The first seed of the quickstart is also a point of the curve over steps, and of that over data.
    """
    points = {key.removeprefix(f"{group}: "): found for key, found in results.items() if key.startswith(f"{group}: ")}
    repeated = results.get(f"bounds: {REPEAT}")
    shared = repeated or [one for one in results.get("main: quickstart", ()) if one.run.seed == SEEDS[0]]
    if points and shared and group != "rank":
        points[str(shared[0].steps) if group == "steps" else "1"] = shared
    return sorted(points.items(), key=lambda point: row_value(point[0]))


def row_value(name: str) -> float:
    """The number or fraction that a row's name starts with: "1/8" is 0.125."""
    numerator, _, denominator = name.partition(",")[0].partition("/")
    return float(numerator) / float(denominator or 1)
