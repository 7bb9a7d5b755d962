"""How far apart are several runs, given how sure their scores are: a chart a task of scores with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from multitask_vl.reports.curves import INK, LINES, SERIES, Panel, inline
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
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10.5, "text.parse_math": False}
    ):
        figure = Figure(figsize=(5, 0.75 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
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
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINES)
        axes.grid(axis="x", color=LINES, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0, pad=5)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        # runs that hardly differ should look so
        low, high = axes.get_xlim()
        axes.set_xlim(max(0.0, min(low, high - 5)) if low >= 0 else low, max(high, low + 5))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    summary = "; ".join(words)
    return Panel(task, inline(buffer.getvalue(), name, f"Scores of {task} on split {split}. {summary}."), summary)


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"
