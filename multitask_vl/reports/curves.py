"""Learning curves: one small SVG chart per task for the training loss and for the scores during training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from multitask_vl.reports.figures import DASHES, INK, SERIES, Panel, drawing, inline_svg, style_axes, to_svg
from multitask_vl.reports.run import Run

MAX_POINTS, SMOOTH_WINDOWS = 400, 20

Points = list[tuple[int, float]]
"""(x, y) pairs, x increasing."""


def loss_panels(runs: Mapping[str, Run]) -> list[Panel]:
    """Training loss of each task by step: a thin line as logged, a thick line smoothed.

    Args:
        runs: label -> run, at most six. Tasks are in the order of the first run.
    """
    panels = []
    for task in _ordered_tasks(runs, [row.task for run in runs.values() for row in run.training]):
        rows = {label: [row for row in run.training if row.task == task] for label, run in runs.items()}
        series = {label: _points((row.step, row.loss) for row in rows[label]) for label in runs}
        panels.append(_panel(f"loss-{len(panels)}", task, series, _last_step(runs), is_loss=True))
    return panels


def score_panels(runs: Mapping[str, Run]) -> dict[str, list[Panel]]:
    """Split -> one chart per task of its primary metric at the evaluations during training.

    Splits that every run scored at one step only have no curve and are omitted.
    """
    splits = dict.fromkeys(row.split for run in runs.values() for row in run.evaluations)
    splits = [
        s for s in splits if any(len({r.step for r in run.evaluations if r.split == s}) > 1 for run in runs.values())
    ]
    panels: dict[str, list[Panel]] = {}
    for split in splits:
        rows = {label: [r for r in run.evaluations if r.split == split] for label, run in runs.items()}
        for task in _ordered_tasks(runs, [task for r in rows.values() for row in r for task in row.scores]):
            series = {label: _points((row.step, row.scores.get(task)) for row in rows[label]) for label in runs}
            name = f"score-{len(panels)}-{len(panels.get(split, []))}"
            panels.setdefault(split, []).append(_panel(name, task, series, _last_step(runs), is_loss=False))
    return panels


def downsample(points: Points, max_points: int) -> Points:
    """At most ``max_points`` points, each the mean over an equal part of the curve: keeps pages of long runs small."""
    if len(points) <= max_points:
        return points
    edges = [round(i * len(points) / max_points) for i in range(max_points + 1)]
    parts = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(part[len(part) // 2][0], sum(v for _, v in part) / len(part)) for part in parts]


def smooth(points: Points) -> Points:
    """Moving average over a window of a twentieth of the curve, at least one point to each side."""
    reach = max(1, len(points) // SMOOTH_WINDOWS // 2)
    values = [value for _, value in points]
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [(step, sum(w) / len(w)) for (step, _), w in zip(points, windows, strict=True)]


def _points(rows: Iterable[tuple[int, float | None]]) -> Points:
    """Values by step. The last value logged for a step counts; missing and non-finite values leave a gap."""
    return [(step, v) for step, v in sorted(dict(rows).items()) if v is not None and math.isfinite(v)]


def _last_step(runs: Mapping[str, Run]) -> int:
    """The step at which every chart ends, so that all charts have the same scale."""
    return max((row.step for run in runs.values() for row in (*run.training, *run.evaluations)), default=1)


def _ordered_tasks(runs: Mapping[str, Run], tasks: Sequence[str]) -> list[str]:
    """Tasks that have points, in the order of the first run's configuration."""
    configured = [task for task in next(iter(runs.values())).setting("tasks", {}) if task in tasks]
    return list(dict.fromkeys([*configured, *tasks]))


def _panel(name: str, task: str, series: Mapping[str, Points], last_step: int, is_loss: bool) -> Panel:
    descriptions = []
    with drawing(name, 5, 2.35) as (figure, axes):
        for index, (label, points) in enumerate(series.items()):
            if not points:
                descriptions.append(f"{label}: none logged")
                continue
            style = {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}
            if is_loss:
                axes.plot(*zip(*downsample(points, MAX_POINTS), strict=True), color=style["color"], lw=0.8, alpha=0.35)
                points = smooth(points)
            style |= {"lw": 2.2, "marker": "" if is_loss else "o", "ms": 5}
            axes.plot(*zip(*downsample(points, MAX_POINTS), strict=True), **style)
            (first, start), (last, end) = points[0], points[-1]
            digits = 2 if is_loss else 1
            until = f" to {end:.{digits}f} at step {last:,}" if last > first else ""
            descriptions.append(f"{label}: {start:.{digits}f} at step {first:,}{until}")
        _style_curve_axes(axes, last_step)
        if not is_loss:
            # At least 5 points of range, so that small changes look small, and no ticks below 0.
            low, high = axes.get_ylim()
            axes.set_ylim(max(0.0, min(low, high - 5)), max(high, low + 5))
        svg = to_svg(figure)
    summary = "; ".join(descriptions)
    quantity = "Training loss" if is_loss else "Score"
    return Panel(task, inline_svg(svg, name, f"{quantity} of {task} by step. {summary}."), summary)


def _style_curve_axes(axes: Axes, last_step: int) -> None:
    style_axes(axes, "y")
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.margins(y=0.08)
    axes.set_xlim(-0.02 * last_step, 1.02 * last_step)
