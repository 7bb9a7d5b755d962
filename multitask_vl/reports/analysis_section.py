"""What does a report show of the inside of a model: figures of the numbers that `launch/analyze.py` left in a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from multitask_vl.errors import InputError
from multitask_vl.reports.figures import SVG_DASHES, Panel
from multitask_vl.reports.heatmaps import HeatMap, heat_panel, layer_panel, overlay
from multitask_vl.reports.html import render_page
from multitask_vl.reports.images import Picture, find_pictures
from multitask_vl.reports.run import Record
from multitask_vl.reports.table import Column, Table

NAME = "analysis.json"
STACKS = ("encoder", "decoder")


class Norm(Record):
    """How far one part of one site was moved; `task` is None where all tasks share it."""

    stack: str
    layer: int
    sublayer: str
    part: str
    task: str | None
    change: float
    initial: float


class Attention(Record):
    """Where a model looked while it wrote one example's words."""

    task: str
    id: str
    images: list[str]
    text: str
    prediction: str
    references: list[str]
    words: list[str]
    grid: tuple[int, int]
    maps: list[list[list[float]]]
    on_pictures: list[float]


class GateMean(Record):
    """Mean of a gate over words and over cells."""

    stack: str
    layer: int
    sublayer: str
    words: float | None
    cells: float | None


class GateMap(Record):
    """A gate, number by number."""

    id: str
    stack: str = ""
    layer: int = 0
    sublayer: str = ""
    positions: list[str] = []
    channels: list[int] = []
    values: list[list[float]] = []


class Gates(Record):
    """Gates by task."""

    means: dict[str, list[GateMean]] = {}
    maps: dict[str, GateMap] = {}


class Directions(Record):
    """Cosines of x_R within and between tasks."""

    tasks: list[str]
    examples: list[int]
    raw: list[list[float]]
    centred: list[list[float]]
    routed: bool
    source: str
    control: str


class Analysis(Record):
    """Content of analysis.json."""

    split: str
    norms: list[Norm]
    attention: list[Attention]
    gates: Gates
    x_r: Directions | None
    notes: list[str] = []


@dataclass(frozen=True)
class Looked:
    """One example's attention as pictures: those of the example, then those of each word with its share in percent."""

    about: Attention
    pictures: list[Picture]
    words: list[tuple[str, float, list[Picture]]]

    def caption(self, word: str | None, place: int) -> str:
        """What stands for a picture where it cannot be seen; of the picture itself where there is no word."""
        side = f", {('left', 'right')[place]} of the pair" if len(self.about.images) == 2 else ""
        picture = f"picture {self.about.images[place]}{side}"
        return f"Attention over {picture} while writing {word!r}" if word is not None else picture.capitalize()


@dataclass(frozen=True)
class Inside:
    """What the section of a page shows; parts that a model does not have are empty."""

    split: str
    norms: list[Panel]
    looked: list[Looked]
    gates: list[Panel]
    gated: list[str]
    gate_maps: list[Panel]
    cosines: list[Panel]
    routed: bool
    notes: list[str] = field(default_factory=list)


def read_analysis(folder: Path) -> Analysis | None:
    """The analysis in a run folder; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return TypeAdapter(Analysis).validate_json(path.read_bytes())
    except ValueError as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: {first}. Run: python launch/analyze.py {folder}") from error


def inside(found: Analysis, folders: Sequence[Path], resize: str) -> Inside:
    """Everything that can be drawn of an analysis.

    Args:
        folders: where pictures lie.
        resize: ``squash`` or ``crop``, how the trunk made its square of a picture.
    """
    files = find_pictures(folders, {key for one in found.attention for key in one.images})
    looked = []
    for one in found.attention:
        words = []
        for word, share, maps in zip(one.words, one.on_pictures, one.maps, strict=True):
            pairs = zip(one.images, maps, strict=True)
            drawn = [overlay(key, files.get(key), resize, cells, one.grid) for key, cells in pairs]
            words.append((word, 100 * share, drawn))
        plain = [overlay(key, files.get(key), resize) for key in one.images]
        looked.append(Looked(one, plain, words))
    notes = list(found.notes)
    if missing := sorted({key for one in found.attention for key in one.images} - files.keys()):
        notes.append(f"{len(missing)} pictures were not found (first: {missing[0]}); their maps are drawn on grey.")
    return Inside(
        found.split,
        norm_panels({"this run": found.norms}),
        looked,
        _gate_panels(found.gates),
        list(found.gates.means),
        [_gate_map(task, one) for task, one in found.gates.maps.items() if one.values],
        _cosine_panels(found.x_r) if found.x_r else [],
        found.x_r is not None and found.x_r.routed,
        notes,
    )


def inside_page(folder: Path, title: str, folders: Sequence[Path], resize: str) -> str:
    """A page of the analysis in ``folder`` alone; see `inside`."""
    found = read_analysis(folder)
    if found is None:
        raise InputError(f"{folder / NAME} is missing. Run: python launch/analyze.py --help")
    return render_page(
        "analysis.html",
        title=title,
        inside=inside(found, folders, resize),
        norms=norm_table(found.norms),
        dashes=SVG_DASHES,
    )


def norm_panels(runs: Mapping[str, Sequence[Norm]]) -> list[Panel]:
    """A chart for each stack and part: the change by layer, a line a run, means over a layer's sublayers and tasks."""
    panels = []
    every = [norm for norms in runs.values() for norm in norms]
    for stack in STACKS:
        for part in dict.fromkeys(norm.part for norm in every if norm.stack == stack):
            lines = {}
            for label, norms in runs.items():
                layers: dict[int, list[float]] = {}
                for norm in norms:
                    if (norm.stack, norm.part) == (stack, part):
                        layers.setdefault(norm.layer + 1, []).append(norm.change)
                if layers:
                    lines[label] = [(layer, statistics.fmean(found)) for layer, found in sorted(layers.items())]
            panels.append(layer_panel(f"norm-{stack}-{part}", f"{part}, {stack}", lines, "Norm of the change"))
    return panels


def norm_table(norms: Sequence[Norm]) -> Table:
    """The same numbers with every sublayer and task."""
    words = ("stack", "layer", "sublayer", "part", "task")
    rows = [
        (one.stack, str(one.layer + 1), one.sublayer, one.part, one.task or "all", one.change, one.initial)
        for one in norms
    ]
    columns = (*(Column(name, "text") for name in words), Column("change", "norm"), Column("at the start", "norm"))
    return Table("Frobenius norms of the change", columns, tuple(rows))


def _gate_panels(gates: Gates) -> list[Panel]:
    """For each sublayer, over words and over cells: a line a task."""
    panels = []
    for sublayer in dict.fromkeys(one.sublayer for rows in gates.means.values() for one in rows):
        for what in ("words", "cells"):
            lines = {}
            for task, rows in gates.means.items():
                points = [(one.layer + 1, getattr(one, what)) for one in rows if one.sublayer == sublayer]
                lines[task] = [(layer, value) for layer, value in points if value is not None]
            panels.append(layer_panel(f"gate-{sublayer}-{what}", f"Behind {sublayer}, over {what}", lines, "Mean gate"))
    return panels


def _gate_map(task: str, one: GateMap) -> Panel:
    title = f"{task}, example {one.id}: gate behind {one.sublayer} of {one.stack} layer {one.layer + 1}"
    heat = HeatMap(one.values, one.positions, [str(channel) for channel in one.channels], "position", "channel")
    return heat_panel(f"gates-{task}", title, heat)


def _cosine_panels(found: Directions) -> list[Panel]:
    panels = []
    for name, values in (("as they are", found.raw), ("less the mean of all tasks", found.centred)):
        heat = HeatMap(values, found.tasks, found.tasks, "", "", low=-1.0, high=1.0, written=True)
        panels.append(heat_panel(f"cosine-{len(panels)}", f"Cosines of x_R, {name}", heat))
    return panels
