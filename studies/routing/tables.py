"""Tables of the routing study: counterparts of the paper's Tables 7, 8, C7 and B2, and differences to no routing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from multitask_vl.reports.markers import replace_section
from multitask_vl.reports.table import Column, Range, Table, Value, format_value, mean_std, render
from studies.routing.record import RunResult, Study, baseline

PAGE, SECTION, QUICK_SECTION = "routing_study.md", "routing study", "quick routing study"
TASKS = {"vqa": "VQA", "gqa": "GQA", "nlvr2": "NLVR2", "coco_caption": "CIDEr", "average": "Avg"}
METHODS = {"single_lora": "Single LoRA", "single_adapter": "Single Adapter", "adapter_per_task": "Multiple Adapters"}
VARIANTS = {"visual": "visual x_R", "shuffled": "shuffled images"}
"""Included variant of the sweep -> its label; others are shown by name."""
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom: two-sided 95 % intervals."""
MINUS = "\N{MINUS SIGN}"
MEANS_NOTE = "Means over seeds. The number of seeds and the standard deviations are in the table of all rows."


def write_page(studies: Mapping[str, Study], docs: Path) -> Path | None:
    """Replace the generated sections of docs/routing_study.md; return the page, or None without a recorded study."""
    page = docs / PAGE
    if "full" in studies:
        replace_section(page, full_text(studies["full"]), SECTION, "--docs")
    if "quick" in studies:
        replace_section(page, quick_text(studies["quick"]), QUICK_SECTION, "--docs")
    return page if studies else None


def full_text(study: Study) -> str:
    """All tables of the full study, as Markdown."""
    tables = {
        "Single modules": [single_module_table(study, ("single_lora", "single_adapter"))],
        "Multiple adapters": [per_task_table(study, "adapter_per_task")],
        "All rows": [all_rows_table(study)],
        "Differences to no routing": [differences_by_seed(study), differences_by_example(study)],
        "Replacing x_R": [replacement_table(study)],
        "Selected learning rates": [learning_rate_table(study)],
    }
    parts = [cost_summary(study)]
    for title, found in tables.items():
        parts += [f"## {title}", *(render(table, "markdown") for table in found if table.rows)]
    return "\n" + "\n\n".join([*parts, run_list(study)]) + "\n"


def quick_text(study: Study) -> str:
    """The table of the quick study, as Markdown."""
    return f"\n{render(quick_table(study), 'markdown')}\n"


def cost_summary(study: Study) -> str:
    """Number of runs, and their cost."""
    steps = ", ".join(f"{steps:,}" for steps in sorted({run.steps for run in study.runs.values()}))
    commits = ", ".join(sorted({run.commit for run in study.runs.values()}))
    return (
        f"{len(study.runs)} of {study.num_planned} runs, {steps} steps each, and their learning-rate trials: "
        f"{study.num_commands} commands, {study.cpu_s / 3600:.1f} CPU core hours. With two runs in parallel, as in "
        f"`make study`, this takes half of {study.wall_s / 3600:.1f} hours. Code: {commits}."
    )


def single_module_table(study: Study, methods: Sequence[str]) -> Table:
    """Means over seeds of modules shared by all tasks, one row per routing function (Table 7)."""
    found = {(runs[0].options["method"], _routing_label(runs[0])): runs for runs in study.rows().values()}
    names = dict.fromkeys(name for method, name in found if method in methods)
    rows = [
        (name, *(_mean(found.get((method, name), ()), task) for method in methods for task in TASKS)) for name in names
    ]
    columns = [Column(f"{METHODS[method]}: {title}") for method in methods for title in TASKS.values()]
    title = "Counterpart of Table 7: one module for all tasks"
    return Table(title, (Column("routing", "text"), *columns), tuple(rows), notes=(MEANS_NOTE,))


def per_task_table(study: Study, method: str) -> Table:
    """Means over seeds of one module per task (Table 8)."""
    rows = [
        (_routing_label(runs[0]), *(_mean(runs, task) for task in TASKS))
        for runs in study.rows().values()
        if runs[0].options["method"] == method
    ]
    columns = (Column("routing", "text"), *map(Column, TASKS.values()))
    return Table("Counterpart of Table 8: one adapter per task", columns, tuple(rows), notes=(MEANS_NOTE,))


def all_rows_table(study: Study) -> Table:
    """Mean and standard deviation over seeds of every row, trainable parameters, time per step (Table C7)."""
    rows = [
        (
            _row_label(runs[0]),
            len(runs),
            *(mean_std([run.scores[task] for run in runs]) for task in TASKS),
            100 * runs[0].trainable / runs[0].total,
            f"{statistics.median(run.step_ms for run in runs):.0f}",
        )
        for runs in study.rows().values()
    ]
    columns = (
        Column("modules, routing", "text"),
        Column("seeds", "count"),
        *map(Column, TASKS.values()),
        Column("trainable, %", "percent"),
        Column("ms/step", "text"),
    )
    notes = (
        "Mean ± sample standard deviation over seeds. Time of a step with 64 examples on one thread, while another run "
        "uses the other core (`make study`).",
    )
    return Table("Counterpart of Table C7: all rows", columns, tuple(rows), notes=notes)


def differences_by_seed(study: Study) -> Table:
    """Difference of each row to the same modules without routing, paired by seed, with Student's t interval."""
    rows = [
        (_row_label(runs[0]), *(_difference(study, runs, task) for task in TASKS))
        for runs in study.rows().values()
        if _has_baseline(study, runs)
    ]
    columns = (Column("modules, routing", "text"), *(Column(title, "text") for title in TASKS.values()))
    notes = (
        "Mean over seeds of the difference to the row without routing with the same seed, each with its selected "
        "learning rate, and its 95 % interval by Student's t over seeds. Bold: the interval excludes 0. There is no "
        "correction for multiple comparisons: of 20 differences that are truly zero, one is expected to be bold.",
    )
    return Table("Paired by seed", columns, tuple(rows), notes=notes)


def differences_by_example(study: Study) -> Table:
    """The same differences with the interval over examples."""
    tasks = [task for task in TASKS if task != "average"]
    rows = []
    for group, runs in study.rows().items():
        paired = study.paired.get(group)
        if paired:
            cells = (_with_interval(*paired[task]) if task in paired else None for task in tasks)
            rows.append((_row_label(runs[0]), *cells))
    columns = (Column("modules, routing", "text"), *(Column(TASKS[task], "text") for task in tasks))
    notes = (
        "The same differences, averaged over seeds for each example, with the percentile bootstrap interval over "
        "examples (95 %). The interval does not include the variation between seeds.",
    )
    return Table("Paired by example", columns, tuple(rows), notes=notes)


def replacement_table(study: Study) -> Table:
    """Scores of a single adapter by what is used as x_R (Table B2)."""
    rows = study.rows()
    variants = {
        "": "mean encoder hidden state (default)",
        "visual": "mean visual hidden state",
        "noise": "noise",
        "ones": "ones",
    }
    functions = ("mul", "add", "mm1", "mm2")
    out: list[tuple[Value, ...]] = []
    plain = rows.get("single_adapter-none", [])
    for task, title in TASKS.items():
        out.append((title, "no routing", *([mean_std([run.scores[task] for run in plain])] * len(functions))))
        for variant, label in variants.items():
            found = [rows.get("-".join(filter(None, ("single_adapter", one, variant))), []) for one in functions]
            if any(found):
                out.append((title, label, *(mean_std([run.scores[task] for run in runs]) for runs in found)))
    columns = (Column("score", "text"), Column("x_R", "text"), *map(Column, functions))
    notes = ("Single Adapter; mean ± sample standard deviation over seeds. Noise and ones: mul and mm1 only.",)
    return Table("Counterpart of Table B2: replacing x_R", columns, tuple(out) if plain else (), notes=notes)


def learning_rate_table(study: Study) -> Table:
    """Average of each trial, and the selected learning rate."""
    tried = list(dict.fromkeys(rate for averages in study.trials.values() for rate in averages))
    rows = []
    for group, runs in study.rows().items():
        averages = study.trials.get(group)
        if averages:
            rows.append((_row_label(runs[0]), f"{runs[0].lr:g}", *(averages.get(rate) for rate in tried)))
    columns = (Column("modules, routing", "text"), Column("selected", "text"), *map(Column, tried))
    notes = ("Average of the four tasks on the val split after a short trial with the first seed, by peak rate.",)
    return Table("Learning-rate trials", columns, tuple(rows), notes=notes)


def quick_table(study: Study) -> Table:
    """Scores of every row, and the difference of its average to no routing."""
    rows = [
        (
            _routing_label(runs[0]),
            *(mean_std([run.scores[task] for run in runs]) for task in TASKS),
            _difference(study, runs, "average") if _has_baseline(study, runs) else "",
        )
        for runs in study.rows().values()
    ]
    steps = ", ".join(sorted({f"{run.steps:,}" for run in study.runs.values()}))
    columns = (
        Column("routing", "text"),
        *map(Column, TASKS.values()),
        Column("difference of Avg to none", "text"),
    )
    seeds = max((len(runs) for runs in study.rows().values()), default=0)
    notes = (
        f"Mean ± sample standard deviation over {seeds} seeds, {steps} steps, test split. The difference is paired by "
        "seed, with its 95 % interval by Student's t. Shuffled images: the features of every image are those of "
        "another image.",
        f"{len(study.runs)} runs. With two in parallel, as in `make study-quick`, they take half of "
        f"{study.wall_s / 60:.0f} minutes.",
    )
    return Table("One adapter for all tasks, early in training", columns, tuple(rows), notes=notes)


def run_list(study: Study) -> str:
    """Every run, in a collapsed section."""
    lines = [
        f"| {name} | {'' if run.lr is None else f'{run.lr:g}'} | "
        f"{' | '.join(f'{run.scores[task]:.1f}' for task in TASKS)} | {run.cpu_s:,.0f} | {run.commit} |"
        for name, run in study.runs.items()
    ]
    head = [
        f"<details><summary>All {len(lines)} runs</summary>",
        "",
        f"| run | lr | {' | '.join(TASKS.values())} | CPU s | commit |",
        f"|---|---:|{'---:|' * len(TASKS)}---:|---|",
    ]
    return "\n".join([*head, *lines, "", "</details>"])


def _routing_label(run: RunResult) -> str:
    variant = run.options.get("include", "")
    return ", ".join(filter(None, (run.options["routing"], VARIANTS.get(variant, variant))))


def _row_label(run: RunResult) -> str:
    return f"{METHODS[run.options['method']]}, {_routing_label(run)}"


def _mean(runs: Sequence[RunResult], task: str) -> float | None:
    return statistics.mean(run.scores[task] for run in runs) if runs else None


def _has_baseline(study: Study, runs: Sequence[RunResult]) -> bool:
    base = baseline(runs[0].options)
    return base in study.rows() and runs[0].group != base


def _difference(study: Study, runs: Sequence[RunResult], task: str) -> str:
    """Mean difference to the baseline over common seeds, with the interval if there are several seeds."""
    base = {run.options["seed"]: run.scores[task] for run in study.rows()[baseline(runs[0].options)]}
    differences = [run.scores[task] - base[run.options["seed"]] for run in runs if run.options["seed"] in base]
    if len(differences) < 2:
        return format_value(differences[0], "difference", MINUS) if differences else ""
    mean = statistics.mean(differences)
    half = T_975[len(differences) - 2] * statistics.stdev(differences) / math.sqrt(len(differences))
    return _with_interval(mean, mean - half, mean + half)


def _with_interval(mean: float, low: float, high: float) -> str:
    mean_text, range_text = (format_value(value, "difference", MINUS) for value in (mean, Range(low, high)))
    text = f"{mean_text} ({range_text})"
    return f"**{text}**" if low > 0 or high < 0 else text
