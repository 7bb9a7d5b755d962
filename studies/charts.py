"""SVG charts for the pages under docs/."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as SVG with selectable text, reproducibly; return the path."""
    # without the date and with fixed ids, the same results give the same file
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    return path
