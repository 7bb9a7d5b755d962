"""Which tables does the study of the embedded world show? Results in, Markdown out, into docs/embedded_world.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.reports.table import Column, Spread, Table, render
from studies.synthetic_world.charts import write_charts
from studies.synthetic_world.results import EXISTENCE, SIDED, TASKS, Result, Results, curve_points, spread, stopped
from studies.synthetic_world.runs import BOUNDS, SEEDS, StudyRun

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
WANTED = {"vqa": 12, "gqa": 12, "nlvr2": 10, "coco_caption": 30}
"""By how much the quickstart must beat the blind control on the report split."""
WANTED_EXISTENCE = 75
SHOWN = {"vqa": "VQA", EXISTENCE: "of it existence", "gqa": "GQA", "nlvr2": "NLVR2", "coco_caption": "CIDEr"}
MAIN_RATES = {"quickstart": ("frozen", "2e-3"), "full": ("1e-4", "2e-3")}
"""Peak rates of what was pretrained and of what is new; those of other runs stand in `BOUNDS`."""
PART = {"report": "Report split", "heldout": "Held-out combinations of colour and shape"}
ROUTED = {"routed": "mm1 and mm2", "rates": "Higher rates"}
CURVES = {"steps": "Steps", "data": "Share of the training split", "rank": "Rank"}


def write_page(runs: Sequence[StudyRun], out: Path, docs: Path, results: Results) -> Path:
    """Replace the part between the markers of ``docs/embedded_world.md`` by what has finished, and draw the charts.

    Raises:
        InputError: the page or one of its markers is missing.
    """
    page = docs / "embedded_world.md"
    text = page.read_text() if page.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise InputError(f"{page}: needs one line {BEGIN} and one line {END}; what stands between them is written here")
    charts = {path.stem: f"![{about}]({path.name})" for path, about in write_charts(results, docs)}
    sections = {
        "Controls": [*tables_of(results, "main"), charts.get("embedded_world_controls")],
        "Every weight trained": tables_of(results, "bounds"),
        "Steps, data, rank": [*tables_of(results, "curves"), charts.get("embedded_world_curves")],
        "mm1 and mm2": tables_of(results, "routed"),
        "Every method": tables_of(results, "methods"),
        "Every run": [listing(results), *(f"Ended without scores: {line}" for line in stopped(runs, out))],
    }
    parts = [part for title, found in sections.items() for part in (f"## {title}", *filter(None, found))]
    before, rest = text.split(BEGIN)
    page.write_text("\n\n".join([before + BEGIN, *parts, END + rest.split(END)[1]]))
    return page


def tables_of(results: Results, section: str) -> list[str]:
    """The tables of a section as Markdown; one whose runs have not finished is left out."""
    tables = {
        "main": lambda: [*(main_table(results, split) for split in PART), verdict_table(results)],
        "bounds": lambda: [bounds_table(results)],
        "curves": lambda: [curve_table(results, group, title) for group, title in CURVES.items()],
        "methods": lambda: [method_table(results)],
        "routed": lambda: [routed_table(results, *which) for which in ROUTED.items()],
    }
    return [render(table, "markdown") for table in tables[section]() if table.rows]


def main_table(results: Results, split: str) -> Table:
    """Each control in a row, mean and spread over its seeds, and what the quickstart has over the blind control."""
    rows = []
    for key, found in results.items():
        if key.startswith("main: ") and (scores := _scores(found, split)):
            rows.append((key.removeprefix("main: ").replace("_", " "), len(found), *scores))
    foot = []
    if rows and {"main: quickstart", "main: blind"} <= results.keys():
        gaps = [gap(results, split, what) for what in SHOWN]
        foot = [("quickstart over blind", "", *gaps)]
    steps = sorted({r.steps for key, found in results.items() if key.startswith("main: ") for r in found})
    notes = (f"Steps: {', '.join(map(str, steps))}. Mean ± sample standard deviation over seeds.",) if rows else ()
    columns = (Column("run", "text"), Column("seeds", "count"), *_columns())
    return Table(PART[split], columns, tuple(rows), tuple(foot), notes)


def bounds_table(results: Results) -> Table:
    """What every weight trained scores by the rates of what was pretrained and of what is new."""
    rates = {f"main: {row}": pair for row, pair in MAIN_RATES.items()}
    rates |= {f"bounds: {row}": (old, new) for row, (_, _, old, new, _) in BOUNDS.items()}
    rows = []
    for key, pair in rates.items():
        found = results.get(key, [])
        if scores := _scores(found, "report"):
            sided = spread(found, "report", SIDED)
            rows.append((key.partition(": ")[2], len(found), found[0].steps, *pair, *scores, sided))
    columns = (
        Column("run", "text"),
        *(Column(name, "count") for name in ("seeds", "steps")),
        *(Column(name, "text") for name in ("rate, pretrained", "rate, new")),
        *_columns(),
        Column("NLVR2 naming a side"),
    )
    notes = (
        "Peak rates of the language model's pretrained weights (`training.backbone_lr`) and of what is new: the visual "
        "embedding and adapters (`training.lr`). `faster`: the former at five times the rate. Report split.",
    )
    return Table("Every weight trained", columns, tuple(rows), notes=notes if rows else ())


def gap(results: Results, split: str, what: str) -> float | None:
    """What the quickstart scores more than the blind control, mean over seeds each."""
    ours, blind = (spread(results[f"main: {row}"], split, what) for row in ("quickstart", "blind"))
    return None if ours is None or blind is None else ours.mean - blind.mean


def verdict_table(results: Results) -> Table:
    """What was asked of the quickstart, what came out, and whether it holds."""
    rows = []
    if {"main: quickstart", "main: blind"} <= results.keys():
        for task, wanted in WANTED.items():
            found = gap(results, "report", task)
            rows.append((f"{TASKS[task]} over blind", float(wanted), found, "yes" if found >= wanted else "**no**"))
        mean = spread(results["main: quickstart"], "report", EXISTENCE).mean
        holds = "yes" if mean >= WANTED_EXISTENCE else "**no**"
        rows.append(("existence questions", float(WANTED_EXISTENCE), mean, holds))
    columns = (Column("report split", "text"), Column("at least"), Column("measured"), Column("holds", "text"))
    return Table("What was asked for", columns, tuple(rows))


def routed_table(results: Results, group: str, title: str) -> Table:
    """Loss at the start and the end, and scores on the tune split, of mm1 and mm2 beside no routing."""
    rows, steps = [], set()
    for name in sorted(key for key in results if key.startswith(f"{group}: ")):
        found = results[name]
        steps |= {one.steps for one in found}
        scored = [one for one in found if one.run.seed == SEEDS[0]]
        firsts, lasts = zip(*(_mean_losses(one) for one in found), strict=True)
        went_well = f"{sum(converged(one) for one in found)} of {len(found)}"
        worst = f"{max(one.worst for one in found):.2f}"
        scores = _scores(scored, "tune") or [None] * len(SHOWN)
        rows.append((name.removeprefix(f"{group}: "), went_well, _range(firsts), _range(lasts), worst, *scores))
    names = ("fell", "loss at first", "at last", "highest in the second half")
    columns = (Column("run", "text"), *(Column(name, "text") for name in names), *_columns())
    length = f"{', '.join(map(str, sorted(steps)))} steps"
    notes = (
        f"{length}, scores on the tune split; otherwise the quickstart's settings (peak rate 2e-3 unless said, warm-up "
        "over a tenth, gradients clipped at norm 1). LoRA has rank 32 on query and value, alpha 32. Losses are means "
        "over the tasks, of the first and the last fifth of the steps; least and greatest over seeds. Scores are those "
        f"of seed {SEEDS[0]}.",
        '"Fell": runs that ended with a finite loss, and on every task with a lower one than at first.',
    )
    return Table(f"{title}, {length}", columns, tuple(rows), notes=notes if rows else ())


def converged(result: Result) -> bool:
    """Whether every task's loss ended finite and below its first value."""
    losses = result.losses.values()
    return bool(losses) and all(last < first for first, last in losses)  # nothing compares less than or above nan


def curve_table(results: Results, group: str, title: str) -> Table:
    """Scores on the report split by steps, share of the data or rank."""
    points = curve_points(results, group)
    rows = [(name, *_scores(found, "report")) for name, found in points]
    columns = (Column(title.lower(), "text"), *_columns())
    lengths = sorted({one.steps for _, found in points for one in found})
    length = "" if group == "steps" else f"{', '.join(map(str, lengths))} steps; "
    bare = "one adapter for all tasks, no trained norms, mul unless said; " if group == "rank" else ""
    seeds = sorted({one.run.seed for _, found in points for one in found})
    told = f"One seed ({seeds[0]})" if len(seeds) == 1 else f"Seeds {' and '.join(map(str, seeds))}, mean ± deviation"
    notes = (f"{told}, report split; {length}{bare}everything else as in the quickstart.",) if rows else ()
    return Table(title, columns, tuple(rows), notes=notes)


def method_table(results: Results) -> Table:
    """Every method with the same budget: share trained, scores on the report split, time of a step."""
    rows, steps = [], set()
    for key, (one, *_) in results.items():
        if key.startswith("methods: "):
            steps.add(one.steps)
            scores = _scores([one], "report")
            time = "" if one.step_ms is None else f"{one.step_ms:.0f}"
            rows.append((key.removeprefix("methods: "), one.trained, *scores, time))
    columns = (Column("method", "text"), Column("trained, %", "percent"), *_columns(), Column("ms a step", "text"))
    notes = (
        f"One seed ({SEEDS[0]}), {', '.join(map(str, sorted(steps)))} steps, report split, no routing; peak rate 2e-3, "
        "5e-4 for `full`. The share trained includes the visual embedding. Time is the median of a run's steps on one "
        "thread of a machine that did other work beside it; `benchmarks/methods.py` compares times properly.",
    )
    return Table("Every method, one budget", columns, tuple(rows), notes=notes if rows else ())


def listing(results: Results) -> str:
    """Every run with its command and its cost, folded away."""
    rows = []
    for found in results.values():
        for one in found:
            cost = "not known" if one.cpu_s is None else f"{one.cpu_s:,.0f}"
            told = f"{one.steps:,} | {one.trained:.1f} | {cost} | {one.version}"
            rows.append(f"| {one.run.name} | {told} | `{one.run.command()}` |")
    total = sum(one.cpu_s or 0 for found in results.values() for one in found)
    head = [
        f"<details><summary>All {len(rows)} runs, {total / 3600:.1f} hours of one core, with their commands</summary>",
        "",
        "| run | steps | trained, % | CPU s | code | command |",
        "|---|---:|---:|---:|---|---|",
    ]
    return "\n".join([*head, *rows, "", "</details>"])


def _columns() -> tuple[Column, ...]:
    return (*(Column(name) for name in SHOWN.values()),)


def _scores(found: Sequence[Result], split: str) -> tuple[Spread | None, ...]:
    scores = tuple(spread(found, split, what) for what in SHOWN)
    return scores if any(score is not None for score in scores) else ()


def _mean_losses(result: Result) -> tuple[float, float]:
    losses = list(result.losses.values()) or [(math.nan, math.nan)]
    return tuple(statistics.mean(pair[at] for pair in losses) for at in (0, 1))


def _range(values: Sequence[float]) -> str:
    least, greatest = f"{min(values):.2f}", f"{max(values):.2f}"
    return least if least == greatest else f"{least} to {greatest}"
