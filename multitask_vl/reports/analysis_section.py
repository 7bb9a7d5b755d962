"""The analysis section of a report: figures of the numbers that `multitask-vl analyze` writes to a run folder."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from multitask_vl.errors import InputError
from multitask_vl.reports.figures import SVG_DASHES, Panel
from multitask_vl.reports.gallery import pair_side
from multitask_vl.reports.heatmaps import Heatmap, attention_overlay, heatmap_panel, layer_panel
from multitask_vl.reports.html import render_page
from multitask_vl.reports.images import EmbeddedImage, find_images
from multitask_vl.reports.options import ANALYSIS_FILE
from multitask_vl.reports.run import FileModel
from multitask_vl.reports.table import Column, Table

STACKS = ("encoder", "decoder")
TOKEN_LABELS = {"text": "text tokens", "visual": "visual tokens"}


class NormChange(FileModel):
    """Frobenius norm of the change of one part of a site; `task` is None for parameters shared by all tasks."""

    stack: str
    layer: int
    sublayer: str
    part: str
    task: str | None
    change: float
    initial: float


class AttentionRecord(FileModel):
    """Cross-attention of one example: ``maps`` [words][images][visual tokens], ``image_share`` [words] in 0-1."""

    task: str
    id: str
    images: list[str]
    text: str
    prediction: str
    references: list[str]
    words: list[str]
    grid: tuple[int, int]
    maps: list[list[list[float]]]
    image_share: list[float]


class GateMean(FileModel):
    """Mean of a gate over text tokens and over visual tokens."""

    stack: str
    layer: int
    sublayer: str
    text: float | None
    visual: float | None


class GateMap(FileModel):
    """Values of a gate for one example, [positions][channels]."""

    id: str
    stack: str = ""
    layer: int = 0
    sublayer: str = ""
    positions: list[str] = []
    channels: list[int] = []
    values: list[list[float]] = []


class Gates(FileModel):
    """Gates by task."""

    means: dict[str, list[GateMean]] = {}
    maps: dict[str, GateMap] = {}


class CosineTable(FileModel):
    """Mean cosine similarities of x_R within and between tasks, [tasks][tasks]."""

    tasks: list[str]
    examples: list[int]
    raw: list[list[float]]
    centered: list[list[float]]
    routed: bool
    source: str
    control: str


class Analysis(FileModel):
    """Content of analysis.json."""

    split: str
    norms: list[NormChange]
    attention: list[AttentionRecord]
    gates: Gates
    x_r: CosineTable | None
    notes: list[str] = []


@dataclass(frozen=True)
class AttentionExample:
    """The attention maps of one example as images.

    Attributes:
        record: the example.
        images: its images without a map.
        words: word, share of the attention on images in percent, and its images with the map of the word.
    """

    record: AttentionRecord
    images: list[EmbeddedImage]
    words: list[tuple[str, float, list[EmbeddedImage]]]

    def alt_text(self, word: str | None, index: int) -> str:
        """Text alternative of the map of ``word`` on the image at ``index``; of the image alone if ``word`` is None."""
        image = f"image {self.record.images[index]}{pair_side(self.record.images, index)}"
        return f"Attention over {image} for the word {word!r}" if word is not None else image.capitalize()


@dataclass(frozen=True)
class AnalysisSection:
    """Figures of the section; parts that a model does not have are empty.

    Attributes:
        split: split of the examples.
        norms: weight changes by layer.
        examples: attention maps.
        gates: mean gates by layer.
        gated_tasks: tasks of `gates`, for the legend.
        gate_maps: gates by position and channel.
        cosines: similarities of x_R.
        routed: whether the model routes x_R.
        notes: notes for the reader.
    """

    split: str
    norms: list[Panel]
    examples: list[AttentionExample]
    gates: list[Panel]
    gated_tasks: list[str]
    gate_maps: list[Panel]
    cosines: list[Panel]
    routed: bool
    notes: list[str] = field(default_factory=list)


def read_analysis(folder: Path) -> Analysis | None:
    """The analysis in a run folder; None if there is none.

    Raises:
        InputError: the file is malformed.
    """
    path = folder / ANALYSIS_FILE
    if not path.exists():
        return None
    try:
        return TypeAdapter(Analysis).validate_json(path.read_bytes())
    except ValueError as error:
        message = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: {message}. Run: multitask-vl analyze {folder}") from error


def analysis_section(analysis: Analysis, folders: Sequence[Path], resize: str) -> AnalysisSection:
    """Draw the figures of an analysis.

    Args:
        analysis: from `read_analysis`.
        folders: folders to search for images.
        resize: ``squash`` or ``crop``, how the vision encoder gets a square image.
    """
    keys = {key for record in analysis.attention for key in record.images}
    files = find_images(folders, keys)
    notes = list(analysis.notes)
    if missing := sorted(keys - files.keys()):
        notes.append(f"{len(missing)} images were not found (first: {missing[0]}); their maps are drawn on gray.")
    return AnalysisSection(
        split=analysis.split,
        norms=norm_panels({"this run": analysis.norms}),
        examples=[_attention_example(record, files, resize) for record in analysis.attention],
        gates=_gate_panels(analysis.gates),
        gated_tasks=list(analysis.gates.means),
        gate_maps=[_gate_map_panel(task, gate) for task, gate in analysis.gates.maps.items() if gate.values],
        cosines=_cosine_panels(analysis.x_r) if analysis.x_r else [],
        routed=analysis.x_r is not None and analysis.x_r.routed,
        notes=notes,
    )


def analysis_page(folder: Path, title: str, folders: Sequence[Path], resize: str) -> str:
    """The analysis in ``folder`` as a page without a report; see `analysis_section`.

    Raises:
        InputError: the folder has no analysis.
    """
    analysis = read_analysis(folder)
    if analysis is None:
        raise InputError(f"{folder / ANALYSIS_FILE} is missing. Run: multitask-vl analyze --help")
    return render_page(
        "analysis.html",
        title=title,
        analysis=analysis_section(analysis, folders, resize),
        norms=norm_table(analysis.norms),
        dashes=SVG_DASHES,
    )


def norm_panels(runs: Mapping[str, Sequence[NormChange]]) -> list[Panel]:
    """One chart per stack and part: norm of the change by layer, averaged over sublayers and tasks, a line per run."""
    panels = []
    norms_of_all = [norm for norms in runs.values() for norm in norms]
    for stack in STACKS:
        for part in dict.fromkeys(norm.part for norm in norms_of_all if norm.stack == stack):
            lines = {}
            for label, norms in runs.items():
                layers: dict[int, list[float]] = {}
                for norm in norms:
                    if (norm.stack, norm.part) == (stack, part):
                        layers.setdefault(norm.layer + 1, []).append(norm.change)
                if layers:
                    lines[label] = [(layer, statistics.fmean(changes)) for layer, changes in sorted(layers.items())]
            panels.append(layer_panel(f"norm-{stack}-{part}", f"{part}, {stack}", lines, "Norm of the change"))
    return panels


def norm_table(norms: Sequence[NormChange]) -> Table:
    """Norms of the change of every sublayer and task."""
    rows = [
        (one.stack, str(one.layer + 1), one.sublayer, one.part, one.task or "all", one.change, one.initial)
        for one in norms
    ]
    columns = (
        *(Column(name, "text") for name in ("stack", "layer", "sublayer", "part", "task")),
        Column("change", "norm"),
        Column("initial norm", "norm"),
    )
    return Table("Frobenius norms of the change", columns, tuple(rows))


def _attention_example(record: AttentionRecord, files: Mapping[str, Path], resize: str) -> AttentionExample:
    words = []
    for word, share, maps in zip(record.words, record.image_share, record.maps, strict=True):
        overlays = [
            attention_overlay(key, files.get(key), resize, attention, record.grid)
            for key, attention in zip(record.images, maps, strict=True)
        ]
        words.append((word, 100 * share, overlays))
    plain = [attention_overlay(key, files.get(key), resize) for key in record.images]
    return AttentionExample(record, plain, words)


def _gate_panels(gates: Gates) -> list[Panel]:
    """Two charts per sublayer, for text and for visual tokens: mean gate by layer, a line per task."""
    panels = []
    for sublayer in dict.fromkeys(mean.sublayer for means in gates.means.values() for mean in means):
        for token_type, tokens in TOKEN_LABELS.items():
            lines = {}
            for task, means in gates.means.items():
                points = [(mean.layer + 1, getattr(mean, token_type)) for mean in means if mean.sublayer == sublayer]
                lines[task] = [(layer, value) for layer, value in points if value is not None]
            panels.append(
                layer_panel(f"gate-{sublayer}-{token_type}", f"After {sublayer}, {tokens}", lines, "Mean gate")
            )
    return panels


def _gate_map_panel(task: str, gate: GateMap) -> Panel:
    title = f"{task}, example {gate.id}: gate after {gate.sublayer} of {gate.stack} layer {gate.layer + 1}"
    heatmap = Heatmap(gate.values, gate.positions, [str(channel) for channel in gate.channels], "channel")
    return heatmap_panel(f"gates-{task}", title, heatmap)


def _cosine_panels(cosines: CosineTable) -> list[Panel]:
    panels = []
    for name, values in (("raw", cosines.raw), ("centered", cosines.centered)):
        heatmap = Heatmap(values, cosines.tasks, cosines.tasks, low=-1.0, high=1.0, annotate=True)
        panels.append(heatmap_panel(f"cosine-{name}", f"Cosine similarity of x_R, {name}", heatmap))
    return panels
