"""How many parameters does each configuration train, part by part, and what percent was published for it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase

from multitask_vl.config import load_config
from multitask_vl.config.schema import Config, Section
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.storage.atomic import write_whole

NAME = "parameters"
"""Of the place of the table in the README."""
OURS = ("language_model", "visual_embedding")


def markers(name: str) -> tuple[str, str]:
    """The lines of a Markdown file between which a command writes."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def parameter_report(config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> dict:
    """``{"trainable", "total", "components": {name: {"trainable", "total"}}}`` of a configuration's model.

    The model is built without values, so base sizes take a second.

    Args:
        tokenizer: decides the rows of the word table. None: the sizes' own vocabulary plus ``backbone.extra_tokens``.
    """
    model = build_model(config, tokenizer, device="meta")
    trainable, total = model.parameter_counts()
    return {"trainable": trainable, "total": total, "components": model.components()}


class Published(Section):
    """A figure from a paper."""

    percent: Annotated[Decimal, Field(gt=0, le=100)]
    """As printed, with its decimals."""
    source: str
    """Paper and table."""


@dataclass(frozen=True)
class Row:
    """The parameters of one configuration.

    Attributes:
        name: of the file, without its ending.
        trainable, total: the frozen CLIP left out.
        language_model, visual_embedding, added: trained of the language model, of the visual embedding, and what the
            methods add, each of which is trained.
    """

    name: str
    method: str
    backbone: str
    trainable: int
    total: int
    language_model: int
    visual_embedding: int
    added: int
    published: Published | None

    @property
    def percent(self) -> float:
        """Trained, of all."""
        return 100 * self.trainable / self.total

    @property
    def agrees(self) -> bool | None:
        """Whether the percentage, rounded as the published one is, is that; None where none was published."""
        if self.published is None:
            return None
        return round(Decimal(self.percent), -self.published.percent.as_tuple().exponent) == self.published.percent


def rows(files: Iterable[Path], published: Mapping[str, Published]) -> list[Row]:
    """Count the model of each configuration.

    Args:
        published: name of a file -> what was published for it.

    Raises:
        InputError: a file that is no configuration of a model.
    """
    return [_row(path, published.get(path.stem)) for path in files]


def read_published(path: Path) -> dict[str, Published]:
    """The figures of a YAML file, by name of a configuration.

    Raises:
        InputError: with one line for every figure that is not one.
    """
    try:
        # as text, since 4.50 says more than 4.5
        return TypeAdapter(dict[str, Published]).validate_python(yaml.load(path.read_text(), Loader=yaml.BaseLoader))
    except ValidationError as error:
        raise InputError(
            [f"{path}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        ) from error


def as_text(table: Iterable[Row]) -> str:
    """For a terminal: columns of even width."""
    lines = [HEAD, *map(_cells, table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in NUMBERS else cell.ljust(width) for i, (cell, width) in enumerate(pairs)
        ).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


def as_markdown(table: Iterable[Row]) -> str:
    """For a README."""
    rule = tuple("---:" if i in NUMBERS else "---" for i in range(len(HEAD)))
    return "\n".join(f"| {' | '.join(line)} |" for line in (HEAD, rule, *map(_cells, table)))


def as_json(table: Iterable[Row]) -> list[dict]:
    """For programs."""
    return [
        {
            "name": row.name,
            "method": row.method,
            "backbone": row.backbone,
            "trainable": row.trainable,
            "total": row.total,
            "percent": row.percent,
            "trained": {name: getattr(row, name) for name in (*OURS, "added")},
            "published": row.published and row.published.model_dump(mode="json"),
            "agrees": row.agrees,
        }
        for row in table
    ]


def put_between_markers(path: Path, text: str, name: str = NAME, option: str = "--markdown") -> None:
    """Replace what stands between two `markers` of a Markdown file.

    Args:
        option: of the command that names the file, for messages.

    Raises:
        InputError: no such file, or it has not one pair of markers.
    """
    begin, end = markers(name)
    if not path.is_file():
        raise InputError(f"{option}: there is no file {path}")
    page = path.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise InputError(f"{option}: {path} has no line '{begin}' before one '{end}'; write both where the table goes")
    before, rest = page.split(begin)
    write_whole(path, f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


HEAD = (
    "configuration", "method", "backbone", "trained of all", "percent", "of the language model", "visual embedding",
    "added", "published", "source",
)  # fmt: skip
NUMBERS = range(3, 9)


def _row(path: Path, published: Published | None) -> Row:
    config = load_config(path)
    report = parameter_report(config)
    trained = {name: count["trainable"] for name, count in report["components"].items()}
    return Row(
        name=path.stem,
        method=" + ".join(_method(one) for one in config.method),
        backbone=_backbone(config),
        trainable=report["trainable"],
        total=report["total"],
        **{name: trained.pop(name) for name in OURS},
        added=sum(trained.values()),
        published=published,
    )


def _method(section) -> str:
    sharing = getattr(section, "sharing", None)
    return section.name if sharing is None else f"{section.name} ({sharing})"


def _backbone(config: Config) -> str:
    backbone = config.backbone
    return backbone.pretrained or f"{backbone.family}, d {backbone.config.get('d_model', '?')}"


def _cells(row: Row) -> tuple[str, ...]:
    published = "" if row.published is None else f"{row.published.percent}" + ("" if row.agrees else " (differs)")
    return (
        row.name,
        row.method,
        row.backbone,
        f"{row.trainable:,} of {row.total:,}",
        f"{row.percent:.2f}",
        f"{row.language_model:,}",
        f"{row.visual_embedding:,}",
        f"{row.added:,}",
        published,
        row.published.source if row.published else "",
    )
