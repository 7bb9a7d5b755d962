"""How is a chart of a page under docs/ saved: SVG whose words are words, the same file for the same numbers."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> Path:
    """Write a chart; returns where."""
    # without the date and with fixed names inside, the same results give the same file
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    return path
