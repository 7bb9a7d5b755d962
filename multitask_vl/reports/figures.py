"""How does a chart get into a page: drawn by matplotlib in stand-ins for the theme's colours, as SVG with its words."""

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

# matplotlib is given these stand-ins; the page's style sheet says what they look like in light, dark and print.
INK, LINES = "#0a0b0c", "#0a0b0d"
SERIES = tuple(f"#0a0b1{i}" for i in range(6))
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 2)))
SVG_DASHES = ("", "9 4", "2 3", "11 4 2 4", "6 2", "14 4")
"""The same for a legend in the page itself."""
_PAINT = {INK: "currentColor", LINES: "var(--rule)"} | {mark: f"var(--series-{i})" for i, mark in enumerate(SERIES)}


@dataclass(frozen=True)
class Panel:
    """One chart: a title, the SVG, and the same in a sentence for those who cannot see it."""

    title: str
    svg: Markup
    summary: str


@contextmanager
def drawing(name: str, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty chart of so many inches, in the settings that it must be saved in as well (`svg_of`).

    Args:
        name: of the chart on its page; ids depend on it, so that the same numbers give the same text.
    """
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10.5, "text.parse_math": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def svg_of(figure: Figure) -> str:
    """What was drawn, the same text for the same numbers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def dress(axes: Axes, along: str) -> None:
    """The look of every chart with axes.

    Args:
        along: the axis of the values, ``x`` or ``y``: lines of the grid stand on it.
    """
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINES)
    axes.grid(axis=along, color=LINES, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, pad=5)


def inline(svg: str, name: str, description: str) -> Markup:
    """matplotlib's SVG as an element of a page: no prologue, ids that are the page's only ones, the theme's colours."""
    id_ = re.sub(r"[^\w-]", "-", name)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{id_}-", svg)
    for mark, paint in _PAINT.items():
        svg = svg.replace(mark, paint)
    box = re.search(r'viewBox="([^"]*)"', svg).group(1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" aria-labelledby="{id_}-title">'
    # Everything else in it was drawn by matplotlib from numbers; the one text that comes from files is escaped here.
    return Markup(f'{head}<title id="{id_}-title">{escape(description)}</title>{svg[svg.index(">") + 1 :]}')
