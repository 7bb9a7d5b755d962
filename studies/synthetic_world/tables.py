"""Tables of the study: docs/synthetic_world.md from the results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.reports.markers import markers, replace_section
from multitask_vl.reports.table import Column, MeanStd, Table, render
from studies.synthetic_world.charts import write_charts
from studies.synthetic_world.results import (
    EXISTENCE,
    LEFT_RIGHT,
    TASKS,
    Result,
    Results,
    curve_points,
    failed_runs,
    mean_score,
)
from studies.synthetic_world.runs import BOUNDS, SEEDS, StudyRun

PAGE, SECTION = "synthetic_world.md", "tables"
QUICKSTART, SHUFFLED = "main: quickstart", "main: shuffled_images"
MIN_DIFFERENCES = {"vqa": 12, "gqa": 12, "nlvr2": 10, "coco_caption": 30}
"""Minimum difference between the quickstart and its shuffled-image control on the test split."""
MIN_EXISTENCE = 75
SCORES = {"vqa": "VQA", EXISTENCE: "VQA existence", "gqa": "GQA", "nlvr2": "NLVR2", "coco_caption": "CIDEr"}
MAIN_RATES = {"quickstart": ("frozen", "2e-3"), "full": ("1e-4", "2e-3")}
"""Peak learning rates of pretrained and of new parameters; those of other rows are in `BOUNDS`."""
SPLITS = {"test": "Test split", "ood": "OOD split: unseen combinations of color and shape"}
ROUTED = {"routed": "mm1 and mm2", "rates": "Higher learning rates"}
CURVES = {"steps": "Steps", "data": "Fraction of the training split", "rank": "Rank"}


def write_page(runs: Sequence[StudyRun], out: Path, docs: Path, results: Results) -> Path:
    """Replace the generated section of docs/synthetic_world.md and draw the charts.

    Raises:
        InputError: the page or one of its markers is missing.
    """
    page = docs / PAGE
    text = page.read_text() if page.is_file() else ""
    if any(text.count(marker) != 1 for marker in markers(SECTION)):
        raise InputError(f"{page}: needs one line {' and one line '.join(markers(SECTION))}, around the generated part")
    charts = {path.stem: f"![{alt}]({path.name})" for path, alt in write_charts(results, docs)}
    sections = {
        "Controls": [*tables_of(results, "main"), charts.get("synthetic_world_controls")],
        "Full fine-tuning": tables_of(results, "bounds"),
        "Steps, data, rank": [*tables_of(results, "curves"), charts.get("synthetic_world_curves")],
        "mm1 and mm2": tables_of(results, "routed"),
        "All methods": tables_of(results, "methods"),
        "All runs": [run_list(results), *(f"Failed: {line}" for line in failed_runs(runs, out))],
    }
    parts = [part for title, found in sections.items() for part in (f"## {title}", *filter(None, found))]
    replace_section(page, "\n" + "\n\n".join(parts) + "\n", SECTION, "--docs")
    return page


def tables_of(results: Results, section: str) -> list[str]:
    """The tables of a section as Markdown, without those that have no rows yet."""
    tables = {
        "main": lambda: [*(main_table(results, split) for split in SPLITS), threshold_table(results)],
        "bounds": lambda: [bounds_table(results)],
        "curves": lambda: [curve_table(results, group, title) for group, title in CURVES.items()],
        "methods": lambda: [method_table(results)],
        "routed": lambda: [routed_table(results, *group) for group in ROUTED.items()],
    }
    return [render(table, "markdown") for table in tables[section]() if table.rows]


def main_table(results: Results, split: str) -> Table:
    """The controls, mean and standard deviation over seeds, and the quickstart's difference to its shuffled control."""
    rows = []
    for key, found in results.items():
        if key.startswith("main: ") and (scores := _scores(found, split)):
            rows.append((key.removeprefix("main: ").replace("_", " "), len(found), *scores))
    foot = []
    if rows and {QUICKSTART, SHUFFLED} <= results.keys():
        foot = [("quickstart minus shuffled images", "", *(difference(results, split, name) for name in SCORES))]
    steps = sorted({r.steps for key, found in results.items() if key.startswith("main: ") for r in found})
    notes = (f"Steps: {', '.join(map(str, steps))}. Mean ± sample standard deviation over seeds.",) if rows else ()
    columns = (Column("run", "text"), Column("seeds", "count"), *_columns())
    return Table(SPLITS[split], columns, tuple(rows), tuple(foot), notes)


def bounds_table(results: Results) -> Table:
    """Scores of full fine-tuning by learning rates of pretrained and of new parameters."""
    rates = {f"main: {row}": pair for row, pair in MAIN_RATES.items()}
    rates |= {f"bounds: {row}": (backbone, new) for row, (_, _, backbone, new, _) in BOUNDS.items()}
    rows = []
    for key, pair in rates.items():
        found = results.get(key, [])
        if scores := _scores(found, "test"):
            left_right = mean_score(found, "test", LEFT_RIGHT)
            rows.append((key.partition(": ")[2], len(found), found[0].steps, *pair, *scores, left_right))
    columns = (
        Column("run", "text"),
        *(Column(name, "count") for name in ("seeds", "steps")),
        *(Column(name, "text") for name in ("backbone lr", "lr")),
        *_columns(),
        Column("NLVR2 left/right"),
    )
    notes = (
        "Test split. Peak learning rates: `backbone lr` for the pretrained parameters of the language model "
        "(`training.backbone_lr`), `lr` for new parameters, the visual embedding and adapters (`training.lr`). Rows "
        "with a higher backbone rate use five times that of `full`. Last column: statements that name a side.",
    )
    return Table("Full fine-tuning", columns, tuple(rows), notes=notes if rows else ())


def difference(results: Results, split: str, name: str) -> float | None:
    """Mean score of the quickstart minus that of its shuffled-image control."""
    quickstart, shuffled = (mean_score(results[key], split, name) for key in (QUICKSTART, SHUFFLED))
    return None if quickstart is None or shuffled is None else quickstart.mean - shuffled.mean


def threshold_table(results: Results) -> Table:
    """The quickstart's acceptance thresholds, measured values, and whether they are met."""
    rows = []
    if {QUICKSTART, SHUFFLED} <= results.keys():
        for task, minimum in MIN_DIFFERENCES.items():
            found = difference(results, "test", task)
            met = "yes" if found >= minimum else "**no**"
            rows.append((f"{TASKS[task]}, minus shuffled images", float(minimum), found, met))
        mean = mean_score(results[QUICKSTART], "test", EXISTENCE).mean
        met = "yes" if mean >= MIN_EXISTENCE else "**no**"
        rows.append(("VQA existence", float(MIN_EXISTENCE), mean, met))
    columns = (Column("test split", "text"), Column("minimum"), Column("measured"), Column("met", "text"))
    return Table("Acceptance thresholds", columns, tuple(rows))


def routed_table(results: Results, group: str, title: str) -> Table:
    """Initial and final losses, and scores on the val split, of mm1, mm2 and no routing."""
    rows, steps = [], set()
    for name in sorted(key for key in results if key.startswith(f"{group}: ")):
        found = results[name]
        steps |= {one.steps for one in found}
        scored = [one for one in found if one.run.seed == SEEDS[0]]
        initial, final = zip(*(_mean_losses(one) for one in found), strict=True)
        count = f"{sum(converged(one) for one in found)} of {len(found)}"
        late = f"{max(one.max_late_loss for one in found):.2f}"
        scores = _scores(scored, "val") or [None] * len(SCORES)
        rows.append((name.removeprefix(f"{group}: "), count, _range(initial), _range(final), late, *scores))
    names = ("converged", "initial loss", "final loss", "max loss, second half")
    columns = (Column("run", "text"), *(Column(name, "text") for name in names), *_columns())
    length = f"{', '.join(map(str, sorted(steps)))} steps"
    notes = (
        f"{length}, scores on the val split. Other settings are the quickstart's (peak learning rate 2e-3 unless "
        "stated, warm-up over a tenth of the steps, gradients clipped at norm 1). LoRA: rank 32 on query and value, "
        "alpha 32. Losses: mean over tasks of the first and of the last fifth of the steps; minimum to maximum over "
        f"seeds. Scores: seed {SEEDS[0]}.",
        "Converged: runs that ended with a finite loss, lower than the initial one on every task.",
    )
    return Table(f"{title}, {length}", columns, tuple(rows), notes=notes if rows else ())


def converged(result: Result) -> bool:
    """Whether the loss of every task ended finite and below its initial value."""
    losses = result.losses.values()
    return bool(losses) and all(final < initial for initial, final in losses)  # comparisons with nan are False


def curve_table(results: Results, group: str, title: str) -> Table:
    """Scores on the test split by steps, training data or rank."""
    points = curve_points(results, group)
    rows = [(name, *_scores(found, "test")) for name, found in points]
    columns = (Column(title.lower(), "text"), *_columns())
    lengths = sorted({one.steps for _, found in points for one in found})
    length = "" if group == "steps" else f"{', '.join(map(str, lengths))} steps. "
    settings = "One adapter for all tasks, no trained norms, mul unless stated. " if group == "rank" else ""
    seeds = sorted({one.run.seed for _, found in points for one in found})
    count = f"One seed ({seeds[0]})" if len(seeds) == 1 else f"Seeds {' and '.join(map(str, seeds))}, mean ± deviation"
    notes = (f"{count}, test split. {length}{settings}Other settings are the quickstart's.",) if rows else ()
    return Table(title, columns, tuple(rows), notes=notes)


def method_table(results: Results) -> Table:
    """All methods with the same budget: trainable parameters, scores on the test split, time per step."""
    rows, steps = [], set()
    for key, (one, *_) in results.items():
        if key.startswith("methods: "):
            steps.add(one.steps)
            scores = _scores([one], "test")
            time = "" if one.step_ms is None else f"{one.step_ms:.0f}"
            rows.append((key.removeprefix("methods: "), one.trainable_percent, *scores, time))
    columns = (Column("method", "text"), Column("trainable, %", "percent"), *_columns(), Column("ms/step", "text"))
    notes = (
        f"One seed ({SEEDS[0]}), {', '.join(map(str, sorted(steps)))} steps, test split, no routing. Peak learning "
        "rate 2e-3, 5e-4 for `full`. Trainable parameters include the visual embedding. Time is the median over the "
        "steps of a run, on one thread of a machine with other load; `benchmarks/methods.py` compares times properly.",
    )
    return Table("All methods, same budget", columns, tuple(rows), notes=notes if rows else ())


def run_list(results: Results) -> str:
    """Every run with its command and cost, in a collapsed section."""
    rows = []
    for found in results.values():
        for one in found:
            cost = "unknown" if one.cpu_s is None else f"{one.cpu_s:,.0f}"
            values = f"{one.steps:,} | {one.trainable_percent:.1f} | {cost} | {one.commit}"
            rows.append(f"| {one.run.name} | {values} | `{one.run.command()}` |")
    total = sum(one.cpu_s or 0 for found in results.values() for one in found)
    head = [
        f"<details><summary>All {len(rows)} runs and their commands, {total / 3600:.1f} CPU core hours</summary>",
        "",
        "| run | steps | trainable, % | CPU s | commit | command |",
        "|---|---:|---:|---:|---|---|",
    ]
    return "\n".join([*head, *rows, "", "</details>"])


def _columns() -> tuple[Column, ...]:
    return tuple(Column(name) for name in SCORES.values())


def _scores(found: Sequence[Result], split: str) -> tuple[MeanStd | None, ...]:
    scores = tuple(mean_score(found, split, name) for name in SCORES)
    return scores if any(score is not None for score in scores) else ()


def _mean_losses(result: Result) -> tuple[float, float]:
    losses = list(result.losses.values()) or [(math.nan, math.nan)]
    return tuple(statistics.mean(pair[at] for pair in losses) for at in (0, 1))


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
