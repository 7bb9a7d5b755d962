"""What a model is given: the rows of one task, tokenised and with their grid features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch


@dataclass
class Batch:
    """Rows of ONE task.

    Attributes:
        task: name of the task, as under ``tasks:`` in the configuration.
        ids: example ids, length B.
        input_ids: prompt and text [B, L], right-padded.
        attention_mask: 1 on text, 0 on padding [B, L].
        features: grid features [B, I, T, D] of I images with T cells (row-major) of D channels; float16 or
            float32.
        labels: target tokens [B, T'], -100 where padded; None when predicting.
        weights: weight of each row's target [B]; None when predicting.
        rows: position of each row in its split [B], for gathering predictions in order.
    """

    task: str
    ids: list[str]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    rows: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy whose tensors are on ``device``."""
        return dataclasses.replace(
            self,
            **{name: value.to(device, non_blocking=non_blocking) for name, value in self._tensors().items()},
        )

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; a DataLoader calls this when asked to pin."""
        return dataclasses.replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})

    def rows_slice(self, start: int, stop: int) -> Batch:
        """The rows from ``start`` to ``stop``, for gradient accumulation."""
        cut = {name: value[start:stop] for name, value in self._tensors().items()}
        return dataclasses.replace(self, ids=self.ids[start:stop], **cut)

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
