"""How are heat maps and lines over layers drawn: on pictures as what a model looked at, beside them as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from multitask_vl.reports.curves import Points
from multitask_vl.reports.figures import DASHES, INK, SERIES, Panel, drawing, dress, inline, svg_of
from multitask_vl.reports.images import Picture, jpeg, upright_rgb

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
        return Picture(key, jpeg(image, quality=82), SIDE, SIDE)
    shares = np.asarray(cells, dtype=np.float32).reshape(grid)
    shares = shares / max(float(shares.max()), 1e-12)
    weights = np.asarray(Image.fromarray(shares).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 1)
    heat = matplotlib.colormaps[COLOURS](weights)[..., :3] * 255
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    mixed = (0.45 * grey + 0.55 * heat).clip(0, 255).astype(np.uint8)
    return Picture(key, jpeg(Image.fromarray(mixed), quality=82), SIDE, SIDE)


def heat_panel(name: str, title: str, heat: HeatMap) -> Panel:
    """A heat map as a picture in a frame of its own, with what it shows in words."""
    values = np.asarray(heat.values, dtype=np.float64)
    low = values.min() if heat.low is None else heat.low
    high = values.max() if heat.high is None else heat.high
    tall = min(9.0, 1.1 + (0.42 if heat.written else 0.16) * len(values))
    with drawing(name, 5.4, tall) as (figure, axes):
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
        svg = svg_of(figure)
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
    with drawing(name, 5, 2.35) as (figure, axes):
        for place, (label, points) in enumerate(lines.items()):
            if not points:
                continue
            colour, dash = SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, lw=2.2, marker="o", ms=5)
            words.append(f"{label}: {', '.join(f'{value:.2f}' for _, value in points)}")
        _dress(axes)
        svg = svg_of(figure)
    summary = "; ".join(words)
    return Panel(title, inline(svg, name, f"{what} by layer: {title}. {summary}."), summary)


def _dress(axes: Axes) -> None:
    dress(axes, "y")
    axes.set_xlabel("layer", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high)
    axes.margins(x=0.06)
