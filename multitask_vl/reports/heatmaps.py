"""Heatmaps of attention over images, heatmap charts and line charts over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.ticker import MaxNLocator
from PIL import Image

from multitask_vl.reports.curves import Points
from multitask_vl.reports.figures import DASHES, INK, SERIES, Panel, drawing, inline_svg, style_axes, to_svg
from multitask_vl.reports.images import EmbeddedImage, jpeg_data_uri, to_rgb

SIDE = 176
"""Side in pixels of an image with an attention map."""
COLORMAP = "inferno"
DIVERGING_COLORMAP = "RdBu"


@dataclass(frozen=True)
class Heatmap:
    """A labeled matrix.

    Attributes:
        values: [rows][columns].
        row_labels, column_labels: one label per row and per column.
        xlabel: what the columns are; may be empty.
        low, high: ends of the color scale; None: minimum and maximum of the values.
        annotate: whether to write each value into its cell.
    """

    values: Sequence[Sequence[float]]
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    xlabel: str = ""
    low: float | None = None
    high: float | None = None
    annotate: bool = False


def attention_overlay(
    key: str,
    path: Path | None,
    resize: str,
    attention: Sequence[float] | None = None,
    grid: tuple[int, int] = (1, 1),
) -> EmbeddedImage:
    """The square image that the vision encoder gets, with an attention map over it.

    Args:
        key: image key.
        path: image file; None: a gray square is drawn instead.
        resize: ``squash`` (resize to a square) or ``crop`` (center crop).
        attention: [rows * columns] attention per visual token, row-major; its maximum sets the color scale. None: the
            image alone, in color; with a map, it is gray.
        grid: rows and columns of visual tokens.
    """
    image = Image.new("RGB", (SIDE, SIDE), "#888888")
    if path is not None:
        try:
            with Image.open(path) as opened:
                full = to_rgb(opened)
        except Exception as error:  # Pillow's decoders raise many exception types on corrupt files
            return EmbeddedImage(key, None, 0, 0, f"unreadable ({type(error).__name__})")
        if resize == "crop":
            side = min(full.size)
            left, top = (full.width - side) // 2, (full.height - side) // 2
            full = full.crop((left, top, left + side, top + side))
        image = full.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if attention is None:
        return EmbeddedImage(key, jpeg_data_uri(image, quality=82), SIDE, SIDE)
    scaled = np.asarray(attention, dtype=np.float32).reshape(grid)
    scaled = scaled / max(float(scaled.max()), 1e-12)
    weights = np.asarray(Image.fromarray(scaled).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 1)
    heat = matplotlib.colormaps[COLORMAP](weights)[..., :3] * 255
    gray = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    blended = (0.45 * gray + 0.55 * heat).clip(0, 255).astype(np.uint8)
    return EmbeddedImage(key, jpeg_data_uri(Image.fromarray(blended), quality=82), SIDE, SIDE)


def heatmap_panel(name: str, title: str, heatmap: Heatmap) -> Panel:
    """A heatmap as a chart, with its mean and extremes as the text alternative."""
    values = np.asarray(heatmap.values, dtype=np.float64)
    low = values.min() if heatmap.low is None else heatmap.low
    high = values.max() if heatmap.high is None else heatmap.high
    height = min(9.0, 1.1 + (0.42 if heatmap.annotate else 0.16) * len(values))
    with drawing(name, 5.4, height) as (figure, axes):
        colormap = DIVERGING_COLORMAP if low < 0 < high else COLORMAP
        shown = axes.imshow(values, aspect="auto", cmap=colormap, vmin=low, vmax=max(high, low + 1e-9))
        columns = range(len(heatmap.column_labels))
        if heatmap.annotate:
            for i, j in np.ndindex(*values.shape):
                # Dark text on light cells, in every theme of the page.
                luminance = np.dot(shown.cmap(shown.norm(values[i, j]))[:3], (0.299, 0.587, 0.114))
                axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="k" if luminance > 0.5 else "w")
        else:
            columns = columns[:: max(1, len(columns) // 6)]
        axes.set_xticks(columns, [heatmap.column_labels[column] for column in columns])
        axes.set_yticks(range(len(heatmap.row_labels)), heatmap.row_labels)
        if heatmap.xlabel:
            axes.set_xlabel(heatmap.xlabel, color=INK)
        axes.tick_params(colors=INK, length=0, labelsize=None if heatmap.annotate else 7)
        for spine in axes.spines.values():
            spine.set_visible(False)
        _style_colorbar(figure.colorbar(shown, ax=axes, shrink=0.9))
        svg = to_svg(figure)
    summary = _summary(values, heatmap)
    return Panel(title, inline_svg(svg, name, f"{title}. {summary}."), summary)


def layer_panel(name: str, title: str, lines: Mapping[str, Points], quantity: str) -> Panel:
    """A line chart over layers, counted from 1.

    Args:
        lines: label -> (layer, value) pairs; labels without points are omitted.
        quantity: what the values are, for the text alternative.
    """
    descriptions = []
    with drawing(name, 5, 2.35) as (figure, axes):
        for index, (label, points) in enumerate(lines.items()):
            if not points:
                continue
            color, dash = SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]
            axes.plot(*zip(*points, strict=True), color=color, linestyle=dash, lw=2.2, marker="o", ms=5)
            descriptions.append(f"{label}: {', '.join(f'{value:.2f}' for _, value in points)}")
        _style_layer_axes(axes)
        svg = to_svg(figure)
    summary = "; ".join(descriptions)
    return Panel(title, inline_svg(svg, name, f"{quantity} by layer: {title}. {summary}."), summary)


def _summary(values: np.ndarray, heatmap: Heatmap) -> str:
    def describe(flat_index: np.intp) -> str:
        i, j = np.unravel_index(flat_index, values.shape)
        column = " ".join(filter(None, (heatmap.xlabel, heatmap.column_labels[j])))
        return f"{values[i, j]:.2f} ({heatmap.row_labels[i]}, {column})"

    return f"Mean {values.mean():.2f}; highest {describe(values.argmax())}, lowest {describe(values.argmin())}"


def _style_colorbar(bar: Colorbar) -> None:
    bar.ax.tick_params(colors=INK, length=0, labelsize=8)
    bar.outline.set_visible(False)


def _style_layer_axes(axes: Axes) -> None:
    style_axes(axes, "y")
    axes.set_xlabel("layer", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high)
    axes.margins(x=0.06)
