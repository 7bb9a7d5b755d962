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
        features: grid features of I images a row with T cells (row-major) of D channels, float16 or float32:
            [B, I, T, D], or with ``images`` those of the U distinct images, [U, T, D].
        labels: target tokens [B, T'], -100 where padded; None when predicting.
        weights: weight of each row's target [B]; None when predicting.
        rows: position of each row in its split [B], for gathering predictions in order.
        images: which of the distinct images each row has [B, I]; None: no two are the same.
        shares: how much of its example each row is [B], where examples have several rows; None: each is a whole one.
    """

    task: str
    ids: list[str]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    images: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def pictures(self) -> int:
        """Images a row, I."""
        return (self.features if self.images is None else self.images).shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy whose tensors are on ``device``."""
        return dataclasses.replace(
            self,
            **{name: value.to(device, non_blocking=non_blocking) for name, value in self._tensors().items()},
        )

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; a DataLoader calls this when asked to pin."""
        return dataclasses.replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})

    def to_reduce(self) -> tuple[torch.Tensor, ...]:
        """What `Task.reduce` is given behind the losses of the tokens."""
        return (self.labels != -100, self.weights, *(() if self.shares is None else (self.shares,)))

    def repeated(self, times: list[int]) -> Batch:
        """Each row so many times; its images are held once."""
        if max(times) == 1:
            return self
        images, features = self.images, self.features
        if images is None:
            images = torch.arange(features.shape[0] * features.shape[1]).view(features.shape[:2])
            features = features.flatten(0, 1)
        rows = torch.arange(len(self)).repeat_interleave(torch.tensor(times))
        return dataclasses.replace(self, images=images, features=features).select(rows)

    def rows_slice(self, start: int, stop: int) -> Batch:
        """The rows from ``start`` to ``stop``."""
        return self.select(torch.arange(len(self))[start:stop])

    def select(self, rows: torch.Tensor) -> Batch:
        """The rows at some places [b], with the padding that they need among themselves."""
        picked = {name: value[rows.to(value.device)] for name, value in self._tensors().items() if name != "features"}
        which = rows if self.images is None else picked["images"]
        if self.images is not None:
            which, places = which.unique(return_inverse=True)
            picked["images"] = places
        picked["features"] = self.features[which.to(self.features.device)]
        longest = max(1, int(picked["attention_mask"].sum(1).max()))
        picked |= {name: picked[name][:, :longest] for name in ("input_ids", "attention_mask")}
        if self.labels is not None:
            picked["labels"] = picked["labels"][:, : max(1, int((picked["labels"] != -100).sum(1).max()))]
        return dataclasses.replace(self, ids=[self.ids[row] for row in rows.tolist()], **picked)

    def pieces(self, size: int | None) -> list[Batch]:
        """All rows in pieces of at most ``size``, rows of like length together, so that less is padding.

        A piece is as long as its longest row. None, or a size that all rows fit into: the batch as it is.
        """
        if size is None or size >= len(self):
            return [self]
        lengths = self.attention_mask.sum(1)
        if self.labels is not None:
            # what is longest to write costs most; it comes first, so that memory runs out at once if it does
            lengths = lengths + (self.labels != -100).sum(1) * (1 + self.attention_mask.shape[1])
        return [self.select(rows) for rows in lengths.argsort(descending=True, stable=True).cpu().split(size)]

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
