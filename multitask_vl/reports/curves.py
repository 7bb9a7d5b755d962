"""How did training go: a small chart a task of the loss and of the scores on the way, as SVG in the page's theme."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from multitask_vl.reports.figures import DASHES, INK, SERIES, Panel, drawing, dress, inline, svg_of
from multitask_vl.reports.run import Run

LOGGED_POINTS, SMOOTH_WINDOWS = 400, 20

Points = list[tuple[int, float]]


def loss_panels(runs: Mapping[str, Run]) -> list[Panel]:
    """Training loss of each task over steps; thin as logged, thick as the mean over neighbouring log lines.

    Args:
        runs: label -> run, at most six; the first is the one that the page is about.
    """
    panels = []
    for task in _ordered(runs, [row.task for run in runs.values() for row in run.training]):
        rows = {label: [row for row in run.training if row.task == task] for label, run in runs.items()}
        series = {label: _points((row.step, row.loss) for row in rows[label]) for label in runs}
        panels.append(_panel(f"loss-{len(panels)}", task, series, _last_step(runs), smooth=True))
    return panels


def score_panels(runs: Mapping[str, Run]) -> dict[str, list[Panel]]:
    """Split -> one chart a task of its headline score at the evaluations on the way.

    Splits that every run scored only once, at its end, have no curve and are left out.
    """
    splits = dict.fromkeys(row.split for run in runs.values() for row in run.evaluations)
    splits = [
        s for s in splits if any(len({r.step for r in run.evaluations if r.split == s}) > 1 for run in runs.values())
    ]
    panels: dict[str, list[Panel]] = {}
    for split in splits:
        rows = {label: [r for r in run.evaluations if r.split == split] for label, run in runs.items()}
        for task in _ordered(runs, [task for r in rows.values() for row in r for task in row.scores]):
            series = {label: _points((row.step, row.scores.get(task)) for row in rows[label]) for label in runs}
            name = f"score-{len(panels)}-{len(panels.get(split, []))}"
            panels.setdefault(split, []).append(_panel(name, task, series, _last_step(runs), smooth=False))
    return panels


def thinned(points: Points, most: int) -> Points:
    """At most ``most`` points: means over equal stretches, so that a long run does not make a heavy page."""
    if len(points) <= most:
        return points
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    parts = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(part[len(part) // 2][0], sum(v for _, v in part) / len(part)) for part in parts]


def smoothed(points: Points) -> Points:
    """Each value's mean with its neighbours within a twentieth of the curve, at least one a side."""
    reach = max(1, len(points) // SMOOTH_WINDOWS // 2)
    values = [value for _, value in points]
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [(step, sum(w) / len(w)) for (step, _), w in zip(points, windows, strict=True)]


def _points(rows) -> Points:
    """Rows by step; a step logged twice counts as its last, and a value that is no number leaves a gap."""
    return [(step, v) for step, v in sorted(dict(rows).items()) if v is not None and math.isfinite(v)]


def _last_step(runs: Mapping[str, Run]) -> int:
    """The step at which every chart ends, so that they can be compared at a glance."""
    return max((row.step for run in runs.values() for row in (*run.training, *run.evaluations)), default=1)


def _ordered(runs: Mapping[str, Run], tasks: Sequence[str]) -> list[str]:
    """The tasks that have points, in the order of the first run's configuration."""
    configured = [task for task in next(iter(runs.values())).setting("tasks", {}) if task in tasks]
    return list(dict.fromkeys([*configured, *tasks]))


def _panel(name: str, task: str, series: Mapping[str, Points], last_step: int, smooth: bool) -> Panel:
    words = []
    with drawing(name, 5, 2.35) as (figure, axes):
        for place, (label, points) in enumerate(series.items()):
            if not points:
                words.append(f"{label}: none logged")
                continue
            look = {"color": SERIES[place % len(SERIES)], "linestyle": DASHES[place % len(DASHES)]}
            if smooth:
                axes.plot(*zip(*thinned(points, LOGGED_POINTS), strict=True), color=look["color"], lw=0.8, alpha=0.35)
                points = smoothed(points)
            look |= {"lw": 2.2, "marker": "" if smooth else "o", "ms": 5}
            axes.plot(*zip(*thinned(points, LOGGED_POINTS), strict=True), **look)
            (first, start), (last, end) = points[0], points[-1]
            digits = 2 if smooth else 1
            until = f" to {end:.{digits}f} at step {last:,}" if last > first else ""
            words.append(f"{label}: {start:.{digits}f} at step {first:,}{until}")
        _dress(axes, last_step)
        if not smooth:
            # A score that hardly moves should look so, and no axis should offer scores below 0.
            low, high = axes.get_ylim()
            axes.set_ylim(max(0.0, min(low, high - 5)), max(high, low + 5))
        svg = svg_of(figure)
    summary = "; ".join(words)
    what = "Training loss" if smooth else "Score"
    return Panel(task, inline(svg, name, f"{what} of {task} by step. {summary}."), summary)


def _dress(axes: Axes, last_step: int) -> None:
    dress(axes, "y")
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.margins(y=0.08)
    axes.set_xlim(-0.02 * last_step, 1.02 * last_step)
