"""How do grid features become tokens: max-pool, projection, and embeddings of place, image and cell.

VL-Adapter's visual embedding (its code, and VL-T5 Section 3.1): ``LN(W x) + LN(W' [x1, x2, y1, y2, area]) + image +
cell``, without dropout and without a norm after the sum. The cell's embedding is a row of the word table, V - 1 - i.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from multitask_vl.config.schema import VisualConfig
from multitask_vl.errors import InputError


class VisualEmbedding(nn.Module):
    """Grid features of a row's images to tokens of the language model's width.

    Args:
        config: pooling, order embeddings, boxes.
        width: of the language model, d.
        norm: makes a norm of that width, as the family has them.
        init_std: spread of new weights, zero biases; None leaves torch's default.
        cell_rows: rows at the end of the word table that stand for cells.
    """

    def __init__(self, config: VisualConfig, width: int, norm: type[nn.Module], init_std: float | None, cell_rows: int):
        super().__init__()
        self.config = config
        self.cell_rows = cell_rows
        self.project = nn.Linear(config.feature_dim, width)
        self.project_norm = norm(width)
        self.box = nn.Linear(5, width)
        self.box_norm = norm(width)
        if config.order_embedding:
            self.image_order = nn.Embedding(config.max_images, width)
            if init_std is not None:
                nn.init.normal_(self.image_order.weight, std=0.02)
        if init_std is not None:
            for linear in (self.project, self.box):
                nn.init.normal_(linear.weight, std=init_std)
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        features: torch.Tensor,
        words: torch.Tensor,
        boxes: torch.Tensor | None = None,
        image_order: torch.Tensor | None = None,
        cell_order: torch.Tensor | None = None,
        repeated: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of every cell, and their projection alone.

        Args:
            features: grid features [B, I, T, D] of I images with T row-major cells; T must be a square if it is
                pooled. With ``repeated`` those of distinct images [U, T, D].
            words: the word table [V, d].
            boxes: corners (x1, x2, y1, y2) in [0, 1] of every cell left after pooling [B, I * T', 4]; None: as
                configured.
            image_order, cell_order: which image, and which cell of it [B, I * T']; None: in order.
            repeated: which of the distinct images each row has [B, I]; each is projected once.

        Returns:
            tokens [B, I * T', d] with image 0 first, and LN(W x) of the same shape.
        """
        if repeated is not None:
            features = features.unsqueeze(1)
        cells = self.pool(features.to(self.project.weight.dtype))
        projected = self.project_norm(self.project(cells))
        if repeated is not None:
            projected = projected.squeeze(1)[repeated]
        count, images, per_image = projected.shape[:3]
        projected = projected.flatten(1, 2)
        if boxes is None:
            boxes = self._own_boxes(per_image, projected).repeat(images, 1)
        area = (boxes[..., 3] - boxes[..., 2]) * (boxes[..., 1] - boxes[..., 0])
        tokens = projected + self.box_norm(self.box(torch.cat([boxes, area.unsqueeze(-1)], -1)))
        if not self.config.order_embedding:
            return tokens, projected
        if images > self.config.max_images:
            raise InputError(f"visual.max_images is {self.config.max_images}, but a row has {images} images")
        if per_image > self.cell_rows:
            raise InputError(
                f"an image has {per_image} cells after pooling, but the word table has rows for {self.cell_rows} "
                "(half of backbone.extra_tokens); pool with visual.pool or raise backbone.extra_tokens"
            )
        if image_order is None:
            image_order = torch.arange(images, device=projected.device).repeat_interleave(per_image).expand(count, -1)
        if cell_order is None:
            cell_order = torch.arange(per_image, device=projected.device).repeat(images).expand(count, -1)
        tokens = tokens + self.image_order(image_order) + F.embedding(len(words) - 1 - cell_order, words)
        return tokens, projected

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Each image's grid max-pooled: [B, I, T, D] -> [B, I, T', D]. From 7x7 to 6x6 this is 2x2 at stride 1."""
        if self.config.pool is None:
            return features
        count, images, cells, width = features.shape
        side = math.isqrt(cells)
        if side * side != cells:
            raise InputError(
                f"visual.pool needs square grids, but an image has {cells} cells; set visual.pool: null to take the "
                "cells as stored"
            )
        grid = features.reshape(count * images, side, side, width).permute(0, 3, 1, 2)
        pooled = F.adaptive_max_pool2d(grid, self.config.pool)
        return pooled.flatten(2).transpose(1, 2).reshape(count, images, -1, width)

    @torch.no_grad()
    def init_standardized(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Make the projection's initial value that of ``W (x - mean) / std``.

        Args:
            mean, std: of each channel over training cells [D]; a channel that never varies is only centred.
        """
        mean, std = mean.to(self.project.weight), std.to(self.project.weight)
        self.project.weight /= torch.where(std > 1e-6, std, torch.ones_like(std))
        self.project.bias -= self.project.weight @ mean

    def _own_boxes(self, per_image: int, like: torch.Tensor) -> torch.Tensor:
        """Corners (x1, x2, y1, y2) [T', 4] of one image's cells in [0, 1], or zeros as published."""
        if self.config.boxes == "zeros":
            return like.new_zeros(per_image, 4)
        side = math.isqrt(per_image)
        rows, columns = self.config.pool or (side, side)
        if rows * columns != per_image:
            raise InputError(f"visual.boxes: grid needs square grids, but an image has {per_image} cells; use zeros")
        row = torch.arange(rows, device=like.device, dtype=like.dtype).repeat_interleave(columns)
        column = torch.arange(columns, device=like.device, dtype=like.dtype).repeat(rows)
        return torch.stack([column / columns, (column + 1) / columns, row / rows, (row + 1) / rows], -1)
