"""How is a table written: plain text for a terminal, Markdown, LaTeX or CSV, all from one structure."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "score", "difference", "count", "percent", "norm"]
FORMATS = ("text", "markdown", "latex", "csv")
ABSENT = "-"


@dataclass(frozen=True)
class Spread:
    """Mean of several runs and their sample standard deviation (None for one run)."""

    mean: float
    std: float | None = None


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Mean and deviation of several runs' values; None where there is none or a run lacks its own."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Range:
    """An interval."""

    low: float
    high: float


Value = str | int | float | Spread | Range | None


@dataclass(frozen=True)
class Column:
    """Heading of a column, and what kind of values stand under it."""

    name: str
    kind: Kind = "score"


@dataclass(frozen=True)
class Table:
    """A table before it is written.

    Attributes:
        title: what it shows.
        columns: headings; the first column names the rows.
        rows: values under the columns; None where there is none.
        foot: rows that sum up, set apart at the end.
        notes: sentences that belong under it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    foot: tuple[tuple[Value, ...], ...] = ()
    notes: tuple[str, ...] = ()


def cell(value: Value, kind: Kind, minus: str = "-", plus_minus: str = " +- ") -> str:
    """Text of one value: scores with one decimal, differences with their sign, counts with separators."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ABSENT
    if isinstance(value, Spread):
        tail = "" if value.std is None else f"{plus_minus}{value.std:.1f}"
        return cell(value.mean, kind, minus) + tail
    if isinstance(value, Range):
        return f"{cell(value.low, kind, minus)} to {cell(value.high, kind, minus)}"
    if isinstance(value, str):
        return value
    # A difference that rounds to nothing has no sign.
    patterns = {"difference": "+.1f" if round(value, 1) else ".1f", "count": ",d", "percent": ".2f", "norm": ".3f"}
    text = format(int(value) if kind == "count" else value, patterns.get(kind, ".1f"))
    return (text.replace("-", "") if not text.strip("-0.") else text).replace("-", minus)


def render(table: Table, form: str) -> str:
    """The table as one of `FORMATS`, without a newline at the end."""
    return {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv}[form](table)


def _body(table: Table, **style: str) -> tuple[list[list[str]], list[list[str]]]:
    def write(rows: Sequence[Sequence[Value]]) -> list[list[str]]:
        return [[cell(v, c.kind, **style) for v, c in zip(row, table.columns, strict=True)] for row in rows]

    return write(table.rows), write(table.foot)


def _text(table: Table) -> str:
    rows, foot = _body(table)
    head = [column.name for column in table.columns]
    widths = [max(map(len, column)) for column in zip(head, *rows, *foot, strict=True)]
    sides = ["<" if column.kind == "text" else ">" for column in table.columns]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(f"{c:{s}{w}}" for c, s, w in zip(cells, sides, widths, strict=True)).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [table.title, line(head), rule, *map(line, rows)]
    if foot:
        lines += [rule, *map(line, foot)]
    return "\n".join(lines + [f"note: {note}" for note in table.notes])


def _markdown(table: Table) -> str:
    rows, foot = _body(table, plus_minus=" ± ")

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rule = "|" + "|".join("---" if column.kind == "text" else "---:" for column in table.columns) + "|"
    bold = [[f"**{c}**" if c.strip() else c for c in row] for row in foot]
    head = line([column.name for column in table.columns])
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"**{table.title}**", "", head, rule, *map(line, rows + bold), *([""] if notes else []), *notes])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}", **{mark: f"\\{mark}" for mark in "&%$#_{}"}}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(mark, mark) for mark in text)


def _latex(table: Table) -> str:
    def line(row: Sequence[Value]) -> str:
        cells = []
        for value, column in zip(row, table.columns, strict=True):
            if isinstance(value, str) or value is None:
                cells.append(_escape_latex(cell(value, column.kind)))
            elif isinstance(value, Range):
                cells.append("--".join(f"${cell(end, column.kind)}$" for end in (value.low, value.high)))
            else:
                number = cell(value, column.kind, plus_minus=r" \pm ").replace(",", "{,}")
                cells.append(f"${number}$")
        return " & ".join(cells) + r" \\"

    sides = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    head = " & ".join(_escape_latex(column.name) for column in table.columns) + r" \\"
    foot = [r"\midrule", *map(line, table.foot)] if table.foot else []
    notes = [f"% {note}" for note in table.notes]
    lines = [f"% {table.title}", *notes, rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, *map(line, table.rows), *foot, r"\bottomrule", r"\end{tabular}"])


def _csv(table: Table) -> str:
    """Full precision, for programs; a column of means or of intervals becomes two."""
    rows = table.rows + table.foot
    ends = [_ends(column.name, [row[i] for row in rows]) for i, column in enumerate(table.columns)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for names in ends for name in names])
    for row in rows:
        cells: list[Value] = []
        for value, names in zip(row, ends, strict=True):
            pair = dataclasses.astuple(value) if isinstance(value, Spread | Range) else (value, None)
            cells += pair[: len(names)]
        writer.writerow(["" if value is None else value for value in cells])
    return out.getvalue().rstrip("\n")


def _ends(name: str, values: Sequence[Value]) -> list[str]:
    """The heading or headings of a column in CSV."""
    if any(isinstance(value, Range) for value in values):
        return [f"{name} low", f"{name} high"]
    return [name, f"{name} std"] if any(isinstance(value, Spread) for value in values) else [name]
