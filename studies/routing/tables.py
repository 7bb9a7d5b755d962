"""Which tables does the routing study show? Those of the paper: 7, 8, C7 and B2; and every difference to no routing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from multitask_vl.reports.table import Column, Range, Table, Value, cell, render, spread_of
from multitask_vl.reproduction.parameters import put_between_markers
from studies.routing.record import Scored, Study, baseline

TASKS = {"vqa": "VQA", "gqa": "GQA", "nlvr2": "NLVR2", "coco_caption": "CIDEr", "average": "Avg"}
METHODS = {"single_lora": "Single LoRA", "single_adapter": "Single Adapter", "adapter_per_task": "Multiple Adapters"}
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom."""
MINUS = "\N{MINUS SIGN}"


def write_pages(studies: Mapping[str, Study], docs: Path, readme: Path) -> list[Path]:
    """Put the tables of what is on record between the markers of ``study.md`` and, of the quick form, ``README.md``."""
    page, written = docs / "study.md", []
    if "full" in studies:
        put_between_markers(page, full_text(studies["full"]), "routing study", "--docs")
        written.append(page)
    if "quick" in studies:
        text = quick_text(studies["quick"])
        put_between_markers(page, text, "quick routing study", "--docs")
        put_between_markers(readme, text, "quick routing study", "--readme")
        written += [page, readme]
    return list(dict.fromkeys(written))


def full_text(study: Study) -> str:
    """All tables of the whole study, as Markdown."""
    tables = {
        "Single modules": [beside(study, ("single_lora", "single_adapter"))],
        "Multiple adapters": [alone(study, "adapter_per_task")],
        "Over seeds": [over_seeds(study)],
        "Differences to no routing": [differences(study), over_examples(study)],
        "Replacing x_R": [replaced(study)],
        "Chosen learning rates": [rates(study)],
    }
    parts = [cost(study)]
    for title, found in tables.items():
        parts += [f"## {title}", *(render(table, "markdown") for table in found if table.rows)]
    return "\n" + "\n\n".join([*parts, listing(study)]) + "\n"


def quick_text(study: Study) -> str:
    """The one table of the smaller form."""
    return f"\n{render(quick(study), 'markdown')}\n"


def cost(study: Study) -> str:
    """What was run and how long it took."""
    steps = sorted({run.steps for run in study.runs.values()})
    versions = sorted({run.version for run in study.runs.values()})
    return (
        f"{len(study.runs)} of {study.planned} runs, {', '.join(f'{one:,}' for one in steps)} steps each, and the "
        f"trials of their rates: {study.commands} commands, {study.cpu_s / 3600:.1f} hours of one core; "
        f"two at a time, as `make study` runs them, half of {study.wall_s / 3600:.1f} hours. "
        f"Code: {', '.join(versions)}."
    )


def beside(study: Study, methods: Sequence[str]) -> Table:
    """Means over seeds of several kinds of modules side by side, a row for each routing function (Table 7)."""
    found = {(one[0].options["method"], _name(one[0])): one for one in study.rows().values()}
    names = dict.fromkeys(name for method, name in found if method in methods)
    out = [
        (name, *(_mean(found.get((method, name), ()), task) for method in methods for task in TASKS)) for name in names
    ]
    heads = [Column(f"{METHODS[method]}: {title}") for method in methods for title in TASKS.values()]
    return Table(
        "As Table 7: one module for all tasks", (Column("routing", "text"), *heads), tuple(out), notes=(_SEEDS,)
    )


def alone(study: Study, method: str) -> Table:
    """Means over seeds of modules per task (Table 8)."""
    rows = [
        (_name(found[0]), *(_mean(found, task) for task in TASKS))
        for found in study.rows().values()
        if found[0].options["method"] == method
    ]
    columns = (Column("routing", "text"), *map(Column, TASKS.values()))
    return Table("As Table 8: an adapter for each task", columns, tuple(rows), notes=(_SEEDS,))


def over_seeds(study: Study) -> Table:
    """Mean and deviation over seeds of every row, what it trains and how long its step takes (Table C7)."""
    rows = [
        (
            f"{METHODS[found[0].options['method']]}, {_name(found[0])}",
            len(found),
            *(spread_of([run.scores[task] for run in found]) for task in TASKS),
            100 * found[0].trainable / found[0].total,
            f"{statistics.median(run.step_ms for run in found):.0f}",
        )
        for found in study.rows().values()
    ]
    columns = (
        Column("modules, routing", "text"),
        Column("seeds", "count"),
        *map(Column, TASKS.values()),
        Column("trained, %", "percent"),
        Column("ms a step", "text"),
    )
    notes = (
        "Mean ± sample standard deviation over seeds. A step is one of 64 examples on one thread, while another run "
        "has the other core (`make study`).",
    )
    return Table("As Table C7: every row", columns, tuple(rows), notes=notes)


def differences(study: Study) -> Table:
    """What each row scores more than the same modules without routing, seed by seed, with Student's interval."""
    rows = [
        (_label(found[0]), *(_over_seeds(study, found, task) for task in TASKS))
        for found in study.rows().values()
        if _compared(study, found)
    ]
    columns = (Column("modules, routing", "text"), *(Column(title, "text") for title in TASKS.values()))
    notes = (
        "Mean over seeds of the difference to the row without routing at the same seed, each at its own rate, and its "
        "95 % interval by Student's t over the seeds. Bold: the interval leaves out 0. Nothing is corrected for "
        "looking at many differences: of 20 that are nothing, one will be bold.",
    )
    return Table("Paired by seed", columns, tuple(rows), notes=notes)


def over_examples(study: Study) -> Table:
    """The same, with the interval over the examples that are scored."""
    tasks = [task for task in TASKS if task != "average"]
    rows = []
    for group, found in study.rows().items():
        pairs = study.paired.get(group)
        if pairs:
            rows.append(
                (_label(found[0]), *(_with_interval(*pairs[task]) if task in pairs else None for task in tasks))
            )
    columns = (Column("modules, routing", "text"), *(Column(TASKS[task], "text") for task in tasks))
    notes = (
        "The same differences, means over seeds for each example; the interval is that of drawing the examples again "
        "(percentile bootstrap, 95 %). The draw of seeds is not in it.",
    )
    return Table("Paired by example", columns, tuple(rows), notes=notes)


def replaced(study: Study) -> Table:
    """A single adapter's scores by what stands in for x_R (Table B2)."""
    rows = study.rows()
    names = {
        "": "encoder states, pooled (x_R)",
        "visual_pooled": "visual states, pooled",
        "noise": "noise",
        "ones": "ones",
    }
    functions = ("mul", "add", "mm1", "mm2")
    out: list[tuple[Value, ...]] = []
    plain = rows.get("single_adapter-none", [])
    for task, title in TASKS.items():
        out.append((title, "no routing", *([spread_of([run.scores[task] for run in plain])] * len(functions))))
        for extra, name in names.items():
            found = [rows.get("-".join(filter(None, ("single_adapter", one, extra))), []) for one in functions]
            if any(found):
                out.append((title, name, *(spread_of([run.scores[task] for run in one]) for one in found)))
    columns = (Column("score", "text"), Column("x_R", "text"), *map(Column, functions))
    notes = ("Single Adapter; mean ± sample standard deviation over seeds. Noise and ones: mul and mm1 alone.",)
    return Table("As Table B2: another thing in the place of x_R", columns, tuple(out) if plain else (), notes=notes)


def rates(study: Study) -> Table:
    """The average of each trial, and what was chosen."""
    tried = list(dict.fromkeys(rate for found in study.rates.values() for rate in found))
    rows = []
    for group, found in study.rows().items():
        averages = study.rates.get(group)
        if averages:
            rows.append((_label(found[0]), f"{found[0].rate:g}", *(averages.get(rate) for rate in tried)))
    columns = (Column("modules, routing", "text"), Column("chosen", "text"), *map(Column, tried))
    notes = ("Averages of the four tasks on the tune split after a short trial with the first seed, by peak rate.",)
    return Table("Trials", columns, tuple(rows), notes=notes)


def quick(study: Study) -> Table:
    """Scores of every row and the difference of its average to no routing."""
    rows = [
        (
            _name(found[0]),
            *(spread_of([run.scores[task] for run in found]) for task in TASKS),
            _over_seeds(study, found, "average") if _compared(study, found) else "",
        )
        for found in study.rows().values()
    ]
    steps = ", ".join(sorted({f"{run.steps:,}" for run in study.runs.values()}))
    columns = (
        Column("routing", "text"),
        *map(Column, TASKS.values()),
        Column("difference of Avg to none", "text"),
    )
    seeds = max((len(found) for found in study.rows().values()), default=0)
    notes = (
        f"Mean ± sample standard deviation over {seeds} seeds, {steps} steps, report split; the difference is paired "
        "by seed, with its 95 % interval by Student's t. Blind: every picture's features are another picture's.",
        f"{len(study.runs)} runs; two at a time, as `make study-quick` runs them, half of {study.wall_s / 60:.0f} "
        "minutes.",
    )
    return Table("One adapter for all tasks, in the middle of learning", columns, tuple(rows), notes=notes)


def listing(study: Study) -> str:
    """Every run, folded away."""
    lines = [
        f"| {name} | {'' if run.rate is None else f'{run.rate:g}'} | "
        f"{' | '.join(f'{run.scores[task]:.1f}' for task in TASKS)} | {run.cpu_s:,.0f} | {run.version} |"
        for name, run in study.runs.items()
    ]
    head = [
        f"<details><summary>All {len(lines)} runs</summary>",
        "",
        f"| run | rate | {' | '.join(TASKS.values())} | CPU s | code |",
        f"|---|---:|{'---:|' * len(TASKS)}---:|---|",
    ]
    return "\n".join([*head, *lines, "", "</details>"])


_SEEDS = "Means over seeds; how many and how far apart stands below."


def _name(run: Scored) -> str:
    return ", ".join(filter(None, (run.options["routing"], run.options.get("include", "").replace("_", " "))))


def _label(run: Scored) -> str:
    return f"{METHODS[run.options['method']]}, {_name(run)}"


def _mean(found: Sequence[Scored], task: str) -> float | None:
    return statistics.mean(run.scores[task] for run in found) if found else None


def _compared(study: Study, found: Sequence[Scored]) -> bool:
    return baseline(found[0].options) in study.rows() and found[0].group != baseline(found[0].options)


def _over_seeds(study: Study, found: Sequence[Scored], task: str) -> str:
    plain = {run.options["seed"]: run.scores[task] for run in study.rows()[baseline(found[0].options)]}
    gains = [run.scores[task] - plain[run.options["seed"]] for run in found if run.options["seed"] in plain]
    if len(gains) < 2:
        return cell(gains[0], "difference", MINUS) if gains else ""
    mean = statistics.mean(gains)
    half = T_975[len(gains) - 2] * statistics.stdev(gains) / math.sqrt(len(gains))
    return _with_interval(mean, mean - half, mean + half)


def _with_interval(mean: float, low: float, high: float) -> str:
    mean_text, range_text = (cell(value, "difference", MINUS) for value in (mean, Range(low, high)))
    text = f"{mean_text} ({range_text})"
    return f"**{text}**" if low > 0 or high < 0 else text
