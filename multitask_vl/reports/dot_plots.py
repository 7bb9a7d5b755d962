"""Dot plots: one chart per task with the score of each run and its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from multitask_vl.reports.figures import SERIES, Panel, drawing, inline_svg, style_axes, to_svg
from multitask_vl.reports.run import MetricInterval, Run


class _Dot(NamedTuple):
    series: int
    label: str
    value: float
    interval: MetricInterval | None


def dot_panels(runs: Mapping[str, Run], split: str) -> list[Panel]:
    """One chart per task that at least two runs scored: a dot per run, and a line over its interval if it has one."""
    tasks = dict.fromkeys(task for run in runs.values() if split in run.scores.splits for task in run.tasks(split))
    panels = []
    for index, task in enumerate(tasks):
        dots = []
        for series, (label, run) in enumerate(runs.items()):
            scores = run.scores.splits[split].tasks.get(task) if split in run.scores.splits else None
            if scores is not None and scores.value is not None:
                dots.append(_Dot(series, label, scores.value, scores.intervals.get(scores.primary_metric)))
        if len(dots) > 1:
            panels.append(_panel(f"dots-{split}-{index}", task, split, dots))
    return panels


def _panel(name: str, task: str, split: str, dots: list[_Dot]) -> Panel:
    descriptions = []
    with drawing(name, 5, 0.75 + 0.32 * len(dots)) as (figure, axes):
        for height, dot in enumerate(dots):
            color = SERIES[dot.series % len(SERIES)]
            description = f"{dot.label} {dot.value:.1f}"
            if dot.interval is not None:
                low, high = dot.interval.interval
                axes.plot([low, high], [height, height], color=color, lw=2.2, solid_capstyle="round")
                description += f" ({low:.1f} to {high:.1f})"
            axes.plot([dot.value], [height], "o", color=color, ms=7)
            descriptions.append(description)
        axes.set_yticks(range(len(dots)), [_shorten(dot.label) for dot in dots])
        axes.set_ylim(len(dots) - 0.4, -0.6)
        style_axes(axes, "x")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        # At least 5 points of range, so that small differences look small.
        low, high = axes.get_xlim()
        axes.set_xlim(max(0.0, min(low, high - 5)) if low >= 0 else low, max(high, low + 5))
        svg = to_svg(figure)
    summary = "; ".join(descriptions)
    return Panel(task, inline_svg(svg, name, f"Scores of {task} on split {split}. {summary}."), summary)


def _shorten(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"
