"""How far apart are several runs, given how sure their scores are: a chart a task of scores with their intervals."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.ticker import MaxNLocator

from multitask_vl.reports.figures import SERIES, Panel, drawing, dress, inline, svg_of
from multitask_vl.reports.run import Run


def dot_panels(runs: Mapping[str, Run], split: str) -> list[Panel]:
    """One chart a task of a split: a dot a run, and a line over its interval where the run has one."""
    tasks = dict.fromkeys(task for run in runs.values() if split in run.scores.splits for task in run.tasks(split))
    panels = []
    for place, task in enumerate(tasks):
        rows = []
        for order, (label, run) in enumerate(runs.items()):
            scores = run.scores.splits[split].tasks.get(task) if split in run.scores.splits else None
            if scores is not None and scores.value is not None:
                rows.append((order, label, scores.value, scores.intervals.get(scores.headline)))
        if len(rows) > 1:
            panels.append(_panel(f"dots-{split}-{place}", task, split, rows))
    return panels


def _panel(name: str, task: str, split: str, rows: list) -> Panel:
    words = []
    with drawing(name, 5, 0.75 + 0.32 * len(rows)) as (figure, axes):
        for height, (order, label, value, interval) in enumerate(rows):
            colour = SERIES[order % len(SERIES)]
            said = f"{label} {value:.1f}"
            if interval is not None:
                axes.plot(interval.interval, [height, height], color=colour, lw=2.2, solid_capstyle="round")
                said += f" ({interval.interval[0]:.1f} to {interval.interval[1]:.1f})"
            axes.plot([value], [height], "o", color=colour, ms=7)
            words.append(said)
        axes.set_yticks(range(len(rows)), [_short(label) for _, label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        dress(axes, "x")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        # runs that hardly differ should look so
        low, high = axes.get_xlim()
        axes.set_xlim(max(0.0, min(low, high - 5)) if low >= 0 else low, max(high, low + 5))
        svg = svg_of(figure)
    summary = "; ".join(words)
    return Panel(task, inline(svg, name, f"Scores of {task} on split {split}. {summary}."), summary)


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"
