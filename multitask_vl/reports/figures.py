"""Charts for pages: matplotlib figures as inline SVG in the colors of the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Placeholder colors, replaced in the SVG by variables of the style sheet, which has light, dark and print themes.
INK, LINES = "#0a0b0c", "#0a0b0d"
SERIES = tuple(f"#0a0b1{i}" for i in range(6))
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 2)))
SVG_DASHES = ("", "9 4", "2 3", "11 4 2 4", "6 2", "14 4")
"""`DASHES` as SVG attributes, for legends in the page."""
_THEME_COLORS = {INK: "currentColor", LINES: "var(--rule)"} | {
    color: f"var(--series-{i})" for i, color in enumerate(SERIES)
}


@dataclass(frozen=True)
class Panel:
    """One chart: title, SVG, and a text alternative for readers who cannot see it."""

    title: str
    svg: Markup
    summary: str


@contextmanager
def drawing(name: str, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty chart in the matplotlib settings of the pages; call `to_svg` before leaving the context.

    Args:
        name: name of the chart, unique on its page; SVG ids derive from it, so equal numbers give equal SVG.
        width, height: size in inches.
    """
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10.5, "text.parse_math": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def to_svg(figure: Figure) -> str:
    """The figure as deterministic SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def style_axes(axes: Axes, value_axis: str) -> None:
    """Apply the common style of charts.

    Args:
        value_axis: the axis of the values, ``x`` or ``y``; it gets grid lines.
    """
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINES)
    axes.grid(axis=value_axis, color=LINES, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, pad=5)


def inline_svg(svg: str, name: str, description: str) -> Markup:
    """matplotlib's SVG as an element of a page: without prolog, with ids unique on the page, in the theme's colors.

    Args:
        name: name of the chart, unique on its page.
        description: text alternative; it may contain any text and is escaped.
    """
    id_ = re.sub(r"[^\w-]", "-", name)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{id_}-", svg)
    for placeholder, color in _THEME_COLORS.items():
        svg = svg.replace(placeholder, color)
    box = re.search(r'viewBox="([^"]*)"', svg).group(1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" aria-labelledby="{id_}-title">'
    # matplotlib escapes its own texts; the description comes from files and is escaped here.
    return Markup(f'{head}<title id="{id_}-title">{escape(description)}</title>{svg[svg.index(">") + 1 :]}')
