"""How are heat maps and lines over layers drawn: on pictures as what a model looked at, beside them as figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from multitask_vl.reports.curves import DASHES, INK, LINES, SERIES, Panel, Points, inline
from multitask_vl.reports.pictures import Picture, upright_rgb

SIDE = 176
"""Pixels of a side of a picture with a map on it."""
COLOURS = "inferno"
AROUND_ZERO = "RdBu"


@dataclass(frozen=True)
class HeatMap:
    """Numbers in rows and columns.

    Attributes:
        values: [rows][columns].
        rows, columns: their names.
        down, across: what rows and columns are.
        low, high: ends of the scale; None: those of the values.
        written: whether each number stands in its cell.
    """

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    down: str
    across: str
    low: float | None = None
    high: float | None = None
    written: bool = False


def overlay(
    key: str, path: Path | None, resize: str, cells: Sequence[float] | None = None, grid: tuple[int, int] = (1, 1)
) -> Picture:
    """A picture as the trunk saw it, square; with ``cells`` in grey, warmer the more a cell was looked at.

    Args:
        resize: ``squash`` (the whole picture made square) or ``crop`` (its centre).
        cells: shares of attention, row by row; the highest of them sets the scale.
        grid: rows and columns of cells.
    """
    image = Image.new("RGB", (SIDE, SIDE), "#888888")
    if path is not None:
        try:
            with Image.open(path) as opened:
                whole = upright_rgb(opened)
        except Exception as error:  # on damaged files Pillow's decoders raise nearly every type there is
            return Picture(key, None, 0, 0, f"unreadable ({type(error).__name__})")
        if resize == "crop":
            side = min(whole.size)
            left, top = (whole.width - side) // 2, (whole.height - side) // 2
            whole = whole.crop((left, top, left + side, top + side))
        image = whole.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if cells is None:
        return Picture(key, _jpeg(image), SIDE, SIDE)
    shares = np.asarray(cells, dtype=np.float32).reshape(grid)
    shares = shares / max(float(shares.max()), 1e-12)
    weights = np.asarray(Image.fromarray(shares).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 1)
    heat = matplotlib.colormaps[COLOURS](weights)[..., :3] * 255
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    mixed = (0.45 * grey + 0.55 * heat).clip(0, 255).astype(np.uint8)
    return Picture(key, _jpeg(Image.fromarray(mixed)), SIDE, SIDE)


def heat_panel(name: str, title: str, heat: HeatMap) -> Panel:
    """A heat map as a picture in a frame of its own, with what it shows in words."""
    values = np.asarray(heat.values, dtype=np.float64)
    low = values.min() if heat.low is None else heat.low
    high = values.max() if heat.high is None else heat.high
    tall = min(9.0, 1.1 + (0.42 if heat.written else 0.16) * len(values))
    with matplotlib.rc_context(_settings(name)):
        figure = Figure(figsize=(5.4, tall), layout="constrained")
        axes = figure.add_subplot()
        colours = AROUND_ZERO if low < 0 < high else COLOURS
        drawn = axes.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=max(high, low + 1e-9))
        if heat.written:
            for i, j in np.ndindex(*values.shape):
                # a light ground wants dark ink, whatever the page's theme
                shade = np.dot(drawn.cmap(drawn.norm(values[i, j]))[:3], (0.299, 0.587, 0.114))
                axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="k" if shade > 0.5 else "w")
            axes.set_xticks(range(len(heat.columns)), heat.columns)
        else:
            few = range(0, len(heat.columns), max(1, len(heat.columns) // 6))
            axes.set_xticks(few, [heat.columns[place] for place in few])
        axes.set_yticks(range(len(heat.rows)), heat.rows)
        if heat.across:
            axes.set_xlabel(heat.across, color=INK)
        axes.tick_params(colors=INK, length=0, labelsize=None if heat.written else 7)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.9)
        bar.ax.tick_params(colors=INK, length=0, labelsize=8)
        bar.outline.set_visible(False)
        svg = _svg(figure)
    i, j = np.unravel_index(values.argmax(), values.shape)
    m, n = np.unravel_index(values.argmin(), values.shape)
    across = f"{heat.across} " if heat.across else ""
    summary = (
        f"Mean {values.mean():.2f}; highest {values[i, j]:.2f} ({heat.rows[i]}, {across}{heat.columns[j]}), "
        f"lowest {values[m, n]:.2f} ({heat.rows[m]}, {across}{heat.columns[n]})"
    )
    return Panel(title, inline(svg, name, f"{title}. {summary}."), summary)


def layer_panel(name: str, title: str, lines: Mapping[str, Points], what: str) -> Panel:
    """Lines over layers, counted from 1."""
    words = []
    with matplotlib.rc_context(_settings(name)):
        figure = Figure(figsize=(5, 2.35), layout="constrained")
        axes = figure.add_subplot()
        for place, (label, points) in enumerate(lines.items()):
            if not points:
                continue
            colour, dash = SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, lw=2.2, marker="o", ms=5)
            words.append(f"{label}: {', '.join(f'{value:.2f}' for _, value in points)}")
        _dress(axes)
        svg = _svg(figure)
    summary = "; ".join(words)
    return Panel(title, inline(svg, name, f"{what} by layer: {title}. {summary}."), summary)


def _dress(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINES)
    axes.grid(axis="y", color=LINES, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, pad=5)
    axes.set_xlabel("layer", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high)
    axes.margins(x=0.06)


def _settings(name: str) -> dict[str, object]:
    return {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10.5, "text.parse_math": False}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
