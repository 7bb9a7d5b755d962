"""Tables: one structure, written as plain text, Markdown, LaTeX or CSV."""

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

MISSING = "-"


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over runs; `std` is None for a single run."""

    mean: float
    std: float | None = None


def mean_std(values: Sequence[float | None]) -> MeanStd | None:
    """Mean and sample standard deviation of the values of several runs; None if there are none or one is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return MeanStd(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Range:
    """An interval."""

    low: float
    high: float


Value = str | int | float | MeanStd | Range | None


@dataclass(frozen=True)
class Column:
    """Name of a column and the kind of its values, which determines their format."""

    name: str
    kind: Kind = "score"


@dataclass(frozen=True)
class Table:
    """A table, independent of the output format.

    Attributes:
        title: title of the table.
        columns: the columns; the first one names the rows.
        rows: values of each row; None where there is none.
        foot: summary rows, separated from the others.
        notes: sentences to print below the table.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    foot: tuple[tuple[Value, ...], ...] = ()
    notes: tuple[str, ...] = ()


def format_value(value: Value, kind: Kind = "score", minus: str = "-", plus_minus: str = " +- ") -> str:
    """Text of one value: scores with one decimal, differences with a sign, counts with thousands separators."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, MeanStd):
        tail = "" if value.std is None else f"{plus_minus}{value.std:.1f}"
        return format_value(value.mean, kind, minus) + tail
    if isinstance(value, Range):
        return f"{format_value(value.low, kind, minus)} to {format_value(value.high, kind, minus)}"
    if isinstance(value, str):
        return value
    # A difference that rounds to zero has no sign.
    patterns = {"difference": "+.1f" if round(value, 1) else ".1f", "count": ",d", "percent": ".2f", "norm": ".3f"}
    text = format(int(value) if kind == "count" else value, patterns.get(kind, ".1f"))
    return (text.replace("-", "") if not text.strip("-0.") else text).replace("-", minus)


def render(table: Table, form: str) -> str:
    """The table in one of `TABLE_FORMATS`, without a trailing newline."""
    return {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv}[form](table)


def _formatted(table: Table, **style: str) -> tuple[list[list[str]], list[list[str]]]:
    def write(rows: Sequence[Sequence[Value]]) -> list[list[str]]:
        return [[format_value(v, c.kind, **style) for v, c in zip(row, table.columns, strict=True)] for row in rows]

    return write(table.rows), write(table.foot)


def _text(table: Table) -> str:
    rows, foot = _formatted(table)
    head = [column.name for column in table.columns]
    widths = [max(map(len, column)) for column in zip(head, *rows, *foot, strict=True)]
    alignments = ["<" if column.kind == "text" else ">" for column in table.columns]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(f"{c:{s}{w}}" for c, s, w in zip(cells, alignments, widths, strict=True)).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [table.title, line(head), rule, *map(line, rows)]
    if foot:
        lines += [rule, *map(line, foot)]
    return "\n".join(lines + [f"note: {note}" for note in table.notes])


def _markdown(table: Table) -> str:
    rows, foot = _formatted(table, plus_minus=" ± ")

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rule = "|" + "|".join("---" if column.kind == "text" else "---:" for column in table.columns) + "|"
    bold = [[f"**{c}**" if c.strip() else c for c in row] for row in foot]
    head = line([column.name for column in table.columns])
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"**{table.title}**", "", head, rule, *map(line, rows + bold), *([""] if notes else []), *notes])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}", **{character: f"\\{character}" for character in "&%$#_{}"}}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex(table: Table) -> str:
    def line(row: Sequence[Value]) -> str:
        cells: list[str] = []
        for value, column in zip(row, table.columns, strict=True):
            if isinstance(value, str) or value is None:
                cells.append(_escape_latex(format_value(value, column.kind)))
            elif isinstance(value, Range):
                cells.append("--".join(f"${format_value(end, column.kind)}$" for end in (value.low, value.high)))
            else:
                number = format_value(value, column.kind, plus_minus=r" \pm ").replace(",", "{,}")
                cells.append(f"${number}$")
        return " & ".join(cells) + r" \\"

    alignment = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    head = " & ".join(_escape_latex(column.name) for column in table.columns) + r" \\"
    foot = [r"\midrule", *map(line, table.foot)] if table.foot else []
    notes = [f"% {note}" for note in table.notes]
    lines = [f"% {table.title}", *notes, rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, *map(line, table.rows), *foot, r"\bottomrule", r"\end{tabular}"])


def _csv(table: Table) -> str:
    """Full precision. A column of means or intervals becomes two columns."""
    rows = table.rows + table.foot
    names_by_column = [_csv_names(column.name, [row[i] for row in rows]) for i, column in enumerate(table.columns)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for names in names_by_column for name in names])
    for row in rows:
        cells: list[Value] = []
        for value, names in zip(row, names_by_column, strict=True):
            pair = dataclasses.astuple(value) if isinstance(value, MeanStd | Range) else (value, None)
            cells += pair[: len(names)]
        writer.writerow(["" if value is None else value for value in cells])
    return out.getvalue().rstrip("\n")


def _csv_names(name: str, values: Sequence[Value]) -> list[str]:
    """Names of the CSV columns of a table column."""
    if any(isinstance(value, Range) for value in values):
        return [f"{name} low", f"{name} high"]
    return [name, f"{name} std"] if any(isinstance(value, MeanStd) for value in values) else [name]
