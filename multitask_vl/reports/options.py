"""Choices and defaults of the report commands."""

GALLERY_ITEMS = 12
"""Examples per task in a gallery."""
RUN_TABLES = ("scores", "metrics", "breakdowns", "parameters", "mixture", "time", "norms")
COMPARISON_TABLES = ("scores", "seeds", "differences", "breakdowns", "parameters", "mixture", "time", "settings")
TABLE_FORMATS = ("text", "markdown", "latex", "csv")
PAGE_FORMATS = ("html", "markdown", "latex", "csv")
ANALYSIS_FILE = "analysis.json"
"""File of `multitask-vl analyze` in a run folder."""
