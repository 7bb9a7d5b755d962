"""A batch of tokenized rows of one task with their grid features."""

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
        features: grid features, T cells in row-major order of D channels, float16 or float32: of I images per row
            [B, I, T, D], or, with ``image_index``, of the U distinct images of the batch [U, T, D].
        labels: target tokens [B, T'], -100 on padding; None when predicting.
        weights: weight of each row's target [B]; None when predicting.
        rows: position of each row in its split [B], for gathering predictions in order.
        image_index: which of the distinct images each row has [B, I]; None if no image occurs twice.
        target_fraction: fraction of its example that each row is [B], where examples have several targets; None if
            every row is a complete example.
    """

    task: str
    ids: list[str]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    image_index: torch.Tensor | None = None
    target_fraction: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def images_per_row(self) -> int:
        """Images per row, I."""
        return (self.features if self.image_index is None else self.image_index).shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy whose tensors are on ``device``."""
        return dataclasses.replace(
            self,
            **{name: value.to(device, non_blocking=non_blocking) for name, value in self._tensors().items()},
        )

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory; called by a DataLoader with ``pin_memory=True``."""
        return dataclasses.replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})

    def loss_inputs(self) -> tuple[torch.Tensor, ...]:
        """Return the arguments of `Task.reduce` after the per-token losses: valid [B, T'], weights [B], fractions."""
        return (self.labels != -100, self.weights, *(() if self.target_fraction is None else (self.target_fraction,)))

    def repeat_rows(self, times: list[int]) -> Batch:
        """Return a batch with row i repeated ``times[i]`` times; images are not copied."""
        if max(times) == 1:
            return self
        image_index, features = self.image_index, self.features
        if image_index is None:
            image_index = torch.arange(features.shape[0] * features.shape[1]).view(features.shape[:2])
            features = features.flatten(0, 1)
        rows = torch.arange(len(self)).repeat_interleave(torch.tensor(times))
        return dataclasses.replace(self, image_index=image_index, features=features).select(rows)

    def select(self, rows: torch.Tensor) -> Batch:
        """Return the rows at the given positions [b], with padding trimmed to the longest of them."""
        selected = {name: value[rows.to(value.device)] for name, value in self._tensors().items() if name != "features"}
        images = rows
        if self.image_index is not None:
            images, selected["image_index"] = selected["image_index"].unique(return_inverse=True)
        selected["features"] = self.features[images.to(self.features.device)]
        longest = max(1, int(selected["attention_mask"].sum(1).max()))
        selected |= {name: selected[name][:, :longest] for name in ("input_ids", "attention_mask")}
        if self.labels is not None:
            selected["labels"] = selected["labels"][:, : max(1, int((selected["labels"] != -100).sum(1).max()))]
        return dataclasses.replace(self, ids=[self.ids[row] for row in rows.tolist()], **selected)

    def split(self, size: int | None) -> list[Batch]:
        """Split into micro-batches of at most ``size`` rows, rows of similar length together to save padding.

        Each micro-batch is padded to its own longest row. With None, or if all rows fit into ``size``, the result is
        the batch itself.
        """
        if size is None or size >= len(self):
            return [self]
        lengths = self.attention_mask.sum(1)
        if self.labels is not None:
            # the longest targets need the most memory; they come first, so that running out of it shows immediately
            lengths = lengths + (self.labels != -100).sum(1) * (1 + self.attention_mask.shape[1])
        return [self.select(rows) for rows in lengths.argsort(descending=True, stable=True).cpu().split(size)]

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
