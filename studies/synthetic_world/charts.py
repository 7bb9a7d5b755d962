"""What do the study's charts look like? Controls as bars, scores against steps, data and rank as lines, in SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.charts import save
from studies.synthetic_world.results import TASKS, Result, Results, amount, curve_points, spread

INK, FAINT = "#4a4f57", "#c9ccd1"
COLORS = ("#2f6db3", "#c2571a", "#2f8f5b", "#8a4fa3")
MARKS = "osD^"
CURVES = {"steps": "training steps", "data": "share of the training split", "rank": "rank of the adapters"}


def write_charts(results: Results, docs: Path) -> list[tuple[Path, str]]:
    """Draw what has finished; (file, what it shows) each."""
    charts = []
    main = {key.removeprefix("main: "): found for key, found in results.items() if key.startswith("main: ")}
    if len(main) > 1:
        charts.append((save(_bars(main), docs / "embedded_world_controls.svg"), "Scores of the controls"))
    curves = {
        group: [(amount(name), found) for name, found in curve_points(results, group) if "," not in name]
        for group in CURVES
        if any(key.startswith(f"{group}: ") for key in results)
    }
    if curves:
        charts.append((save(_lines(curves), docs / "embedded_world_curves.svg"), "Scores by steps, data and rank"))
    return charts


def _bars(main: Mapping[str, Sequence[Result]]) -> Figure:
    figure = Figure(figsize=(9, 0.36 * len(main) + 0.9), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=True)
    names = list(main)
    for axes, (task, title), color in zip(panels, TASKS.items(), COLORS, strict=True):
        for place, name in enumerate(names):
            score = spread(main[name], "report", task)
            if score is not None:
                axes.barh(place, score.mean, xerr=score.std, color=color, ecolor=INK, height=0.66)
                axes.text(0, place, f" {score.mean:.1f}", va="center", color="white", fontsize=8)
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.set_title(title, fontsize=10, color=INK)
        _plain(axes)
    panels[0].invert_yaxis()
    return figure


def _lines(curves: Mapping[str, Sequence[tuple[float, Sequence[Result]]]]) -> Figure:
    figure = Figure(figsize=(3.1 * len(curves) + 0.4, 4.6), layout="constrained")
    panels = figure.subplots(2, len(curves), sharex="col", sharey="row", squeeze=False)
    for column, (group, points) in enumerate(curves.items()):
        for number, (task, title) in enumerate(TASKS.items()):
            axes = panels[1 if task == "coco_caption" else 0][column]
            scores = [(x, spread(found, "report", task)) for x, found in points]
            xs, ys = zip(*((x, score.mean) for x, score in scores if score is not None), strict=True)
            axes.plot(xs, ys, color=COLORS[number], marker=MARKS[number], markersize=4, linewidth=1.5, label=title)
            axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [f"{x:g}" if x >= 1 else f"1/{round(1 / x)}" for x in xs])
            axes.minorticks_off()
            _plain(axes)
        panels[1][column].set_xlabel(CURVES[group], fontsize=9, color=INK)
    panels[0][0].set_ylabel("accuracy", fontsize=9, color=INK)
    panels[1][0].set_ylabel("CIDEr", fontsize=9, color=INK)
    panels[0][-1].legend(fontsize=8, frameon=False)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3, color=FAINT)
