"""What did a run of the embedded study score, lose and cost? Read from its folder, without the model."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multitask_vl.reports.table import Spread, spread_of
from multitask_vl.synthetic.language import QUESTIONS
from studies.synthetic_world.runs import AGAIN, SEEDS, StudyRun

TASKS = {"vqa": "VQA", "gqa": "GQA", "nlvr2": "NLVR2", "coco_caption": "CIDEr"}
EXISTENCE = "existence"
_EXISTENCE = re.compile(
    "|".join(re.escape(wording).replace(r"\{x\}", "[a-z ]+") for wording in QUESTIONS["exist"].seen)
)
SIDED = "sided"
"""NLVR2's statements that name a side, which need the two pictures told apart."""
_SIDED = re.compile(r".*\b(left|right)\b.*")
_EDGE = 0.2
"""Share of the logged steps that counts as the start, and as the end, of training."""


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        scores: split -> task, `EXISTENCE` or `SIDED` -> score.
        losses: task -> mean training loss over the first and over the last fifth of the steps.
        worst: the largest training loss logged in the second half of the steps, of whichever task.
        cpu_s: processor time, all of the command; None where it is not known.
        steps: how many steps it took.
        trained: share of the parameters trained, in percent.
        step_ms: median time of a training step in milliseconds; None where it is not known.
        version: commit of the code that ran, with a star where files differed from it.
    """

    run: StudyRun
    scores: dict[str, dict[str, float]]
    losses: dict[str, tuple[float, float]]
    worst: float
    cpu_s: float | None
    steps: int
    trained: float
    step_ms: float | None
    version: str


Results = Mapping[str, Sequence[Result]]
"""``group: row`` -> its finished runs."""


def finished(runs: Sequence[StudyRun], out: Path) -> dict[str, list[Result]]:
    """Row -> results of its finished runs, in the order of the runs."""
    results: dict[str, list[Result]] = {}
    for run in runs:
        if (out / "runs" / run.name / "scores.json").is_file():
            results.setdefault(f"{run.group}: {run.row}", []).append(read_result(run, out))
    return results


def stopped(runs: Sequence[StudyRun], out: Path) -> list[str]:
    """A line for each run that was begun and ended with an error: its name, exit code and last words."""
    lines = []
    for run in runs:
        cost, log = out / "costs" / f"{run.name}.json", out / "logs" / f"{run.name}.log"
        if cost.is_file() and not (out / "runs" / run.name / "scores.json").is_file():
            code, words = json.loads(cost.read_text())["exit"], log.read_text().splitlines()
            lines.append(f"{run.name}, exit code {code}: {words[-1] if words else ''}")
    return lines


def read_result(run: StudyRun, out: Path) -> Result:
    """The result of a finished run."""
    folder, cost = out / "runs" / run.name, out / "costs" / f"{run.name}.json"
    record = json.loads((folder / "scores.json").read_text())
    scores = {}
    for split, entry in record["splits"].items():
        scores[split] = {task: one["value"] for task, one in entry["tasks"].items()}
        if "vqa" in scores[split]:
            scores[split][EXISTENCE] = part(folder / "predictions" / "vqa", split, _EXISTENCE)
        if "nlvr2" in scores[split]:
            scores[split][SIDED] = part(folder / "predictions" / "nlvr2", split, _SIDED)
        scores[split]["average"] = entry["average"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    counts = record["parameters"]
    return Result(
        run=run,
        scores=scores,
        losses=first_and_last(rows, record["step"]),
        worst=max(row["loss"] for row in rows if row["step"] > record["step"] / 2),
        cpu_s=json.loads(cost.read_text())["cpu_s"] if cost.is_file() else None,
        steps=record["step"],
        trained=100 * counts["trainable"] / counts["total"],
        step_ms=1000 * statistics.median(row["wall_s"] for row in rows),
        version=version_of(json.loads(made.read_text()) if (made := folder / "record.json").is_file() else {}),
    )


def version_of(record: Mapping) -> str:
    """Commit of the code that ran, by a run's record, with a star where files differed from it."""
    code = record.get("code", {})
    return f"{(code.get('commit') or 'unknown')[:7]}{'*' if code.get('dirty') else ''}"


def part(folder: Path, split: str, wording: re.Pattern[str]) -> float:
    """Mean accuracy of the questions or statements of this wording, 0 to 100, from a run's predictions."""
    scores = json.loads((folder / f"{split}.per_example.json").read_text())
    rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    return statistics.mean(scores[row["id"]] for row in rows if wording.fullmatch(row["text"]))


def first_and_last(rows: Sequence[dict], steps: int) -> dict[str, tuple[float, float]]:
    """Task -> mean logged loss of the first and of the last fifth of the steps; a task missing from one is left out."""
    losses = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        first = [row["loss"] for row in rows if row["task"] == task and row["step"] <= _EDGE * steps]
        last = [row["loss"] for row in rows if row["task"] == task and row["step"] > (1 - _EDGE) * steps]
        if first and last:
            losses[task] = (statistics.mean(first), statistics.mean(last))
    return losses


def spread(results: Sequence[Result], split: str, what: str) -> Spread | None:
    """Mean over runs and sample standard deviation of a score; None where a run lacks it."""
    return spread_of([result.scores.get(split, {}).get(what) for result in results])


def curve_points(results: Results, group: str) -> list[tuple[str, Sequence[Result]]]:
    """(value, results) along a curve, from little to much; empty where the curve's own runs have not finished.

    The quickstart's first seed is a point of the curve over steps, and the point of all the data of that over data.
    """
    points = {key.removeprefix(f"{group}: "): found for key, found in results.items() if key.startswith(f"{group}: ")}
    again = results.get(f"bounds: {AGAIN}")
    shared = again or [one for one in results.get("main: quickstart", ()) if one.run.seed == SEEDS[0]]
    if points and shared and group != "rank":
        points[str(shared[0].steps) if group == "steps" else "1"] = shared
    return sorted(points.items(), key=lambda point: amount(point[0]))


def amount(name: str) -> float:
    """The number that a row's name says first: "1/8" is an eighth."""
    above, _, below = name.partition(",")[0].partition("/")
    return float(above) / float(below or 1)
