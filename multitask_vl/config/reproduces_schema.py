"""Schema of `reproduces:`, the published row that an experiment reproduces."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from multitask_vl.config.base_model import PositiveInt, Section

Metric = Literal["vqa", "gqa", "nlvr2", "coco_caption", "average"]
Figure = Annotated[Decimal, Field(ge=0)]
Percent = Annotated[Decimal, Field(gt=0, le=100)]


class PublishedRow(Section):
    """One row of a table of a paper.

    Figures have the printed decimals; a figure whose last digit is 0 is quoted in YAML (`"65.00"`).
    """

    paper: str | None = None
    """`VL-Adapter`, `VL-PET`, `routing paper` or `ModeX`. Null: no figures are published for this configuration."""
    table: str | None = None
    """The table, such as `Table 2`."""
    note: str | None = None
    """Remark on the source, such as `quoting VL-Adapter`."""
    seeds: PositiveInt | None = None
    """Number of seeds. Null: not stated."""
    scores: dict[Metric, Figure] = {}
    """Task -> published score (accuracy in percent, CIDEr x 100), and `average`."""
    std: dict[Metric, Figure] = {}
    """Task -> published standard deviation over seeds."""
    trained_percent: Percent | None = None
    """Published percentage of trainable parameters."""

    @property
    def source(self) -> str:
        """Paper, table, remark and number of seeds, as text."""
        seeds = self.seeds and f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        return ", ".join(part for part in (self.paper, self.table, self.note, seeds) if part)


class ReproducesConfig(PublishedRow):
    """The published row that a file of `configs/experiments` reproduces; it does not affect training."""

    id: str | None = None
    """Short name of the row, such as `adapter_single`, for `multitask-vl count-params`."""
    trainable: PositiveInt
    """Number of trainable parameters of the model."""
    total: PositiveInt
    """Number of parameters of the model, excluding the frozen vision encoder."""
    also: list[PublishedRow] = []
    """Further published rows of the same configuration."""
