"""Charts of the study: scores of the controls, and curves over steps, data and rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.charts import save
from studies.synthetic_world.results import TASKS, Result, Results, curve_points, mean_score, row_value

INK, FAINT = "#4a4f57", "#c9ccd1"
COLORS = ("#2f6db3", "#c2571a", "#2f8f5b", "#8a4fa3")
MARKERS = "osD^"
CURVES = {"steps": "training steps", "data": "fraction of the training split", "rank": "adapter rank"}


def write_charts(results: Results, docs: Path) -> list[tuple[Path, str]]:
    """Draw the charts of the finished runs; return (file, alternative text) for each."""
    charts = []
    main = {key.removeprefix("main: "): found for key, found in results.items() if key.startswith("main: ")}
    if len(main) > 1:
        charts.append((save(_bars(main), docs / "synthetic_world_controls.svg"), "Scores of the controls"))
    curves = {
        group: [(row_value(name), found) for name, found in curve_points(results, group) if "," not in name]
        for group in CURVES
        if any(key.startswith(f"{group}: ") for key in results)
    }
    if curves:
        charts.append((save(_lines(curves), docs / "synthetic_world_curves.svg"), "Scores by steps, data and rank"))
    return charts


def _bars(main: Mapping[str, Sequence[Result]]) -> Figure:
    figure = Figure(figsize=(9, 0.36 * len(main) + 0.9), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=True)
    names = list(main)
    for axes, (task, title), color in zip(panels, TASKS.items(), COLORS, strict=True):
        for position, name in enumerate(names):
            score = mean_score(main[name], "test", task)
            if score is not None:
                axes.barh(position, score.mean, xerr=score.std, color=color, ecolor=INK, height=0.66)
                axes.text(0, position, f" {score.mean:.1f}", va="center", color="white", fontsize=8)
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.set_title(title, fontsize=10, color=INK)
        _style(axes)
    panels[0].invert_yaxis()
    return figure


def _lines(curves: Mapping[str, Sequence[tuple[float, Sequence[Result]]]]) -> Figure:
    figure = Figure(figsize=(3.1 * len(curves) + 0.4, 4.6), layout="constrained")
    panels = figure.subplots(2, len(curves), sharex="col", sharey="row", squeeze=False)
    for column, (group, points) in enumerate(curves.items()):
        for number, (task, title) in enumerate(TASKS.items()):
            axes = panels[1 if task == "coco_caption" else 0][column]
            scores = [(x, mean_score(found, "test", task)) for x, found in points]
            xs, ys = zip(*((x, score.mean) for x, score in scores if score is not None), strict=True)
            axes.plot(xs, ys, color=COLORS[number], marker=MARKERS[number], markersize=4, linewidth=1.5, label=title)
            axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [f"{x:g}" if x >= 1 else f"1/{round(1 / x)}" for x in xs])
            axes.minorticks_off()
            _style(axes)
        panels[1][column].set_xlabel(CURVES[group], fontsize=9, color=INK)
    panels[0][0].set_ylabel("accuracy", fontsize=9, color=INK)
    panels[1][0].set_ylabel("CIDEr", fontsize=9, color=INK)
    panels[0][-1].legend(fontsize=8, frameon=False)
    return figure


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3, color=FAINT)
