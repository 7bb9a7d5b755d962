"""Visual embedding: grid features to visual tokens, by max-pooling, projection, and box, image and cell embeddings.

VL-Adapter's visual embedding (its code, and VL-T5 Section 3.1): ``LN(W x) + LN(W' [x1, x2, y1, y2, area]) + image +
cell``, without dropout and without a norm after the sum. Cell i is embedded by row V - 1 - i of the word embeddings.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from multitask_vl.config.schema import VisualConfig
from multitask_vl.errors import InputError


class VisualEmbedding(nn.Module):
    """Embeds grid features of a row's images as tokens of the language model's width.

    Args:
        config: pooling, order embeddings, boxes.
        width: width of the language model, d.
        norm: norm class of the family.
        init_std: std of new weights, with zero biases; None keeps torch's default initialization.
        num_order_tokens: number of rows at the end of the word embeddings that are reserved for cells.
    """

    def __init__(
        self, config: VisualConfig, width: int, norm: type[nn.Module], init_std: float | None, num_order_tokens: int
    ):
        super().__init__()
        self.config = config
        self.num_order_tokens = num_order_tokens
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
        word_embeddings: torch.Tensor,
        boxes: torch.Tensor | None = None,
        image_order: torch.Tensor | None = None,
        cell_order: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens, and their projections without box, image and cell embeddings.

        Args:
            features: grid features [B, I, T, D] of I images with T row-major cells; with pooling, T must be a square
                number. With ``image_index``: features of distinct images [U, T, D].
            word_embeddings: [V, d].
            boxes: corners (x1, x2, y1, y2) in [0, 1] of every cell after pooling [B, I * T', 4]; None: as configured.
            image_order, cell_order: index of the image, and of the cell within it [B, I * T']; None: in order.
            image_index: index of each row's images among the distinct ones [B, I]. Each image is projected once.

        Returns:
            tokens [B, I * T', d] with image 0 first, and LN(W x) of the same shape.

        Raises:
            InputError: a grid that cannot be pooled, more images than ``visual.max_images``, or more cells than
                reserved word embeddings.
        """
        if image_index is not None:
            features = features.unsqueeze(1)
        cells = self.max_pool_grid(features.to(self.project.weight.dtype))
        projected = self.project_norm(self.project(cells))
        if image_index is not None:
            projected = projected.squeeze(1)[image_index]
        count, images, per_image = projected.shape[:3]
        projected = projected.flatten(1, 2)
        if boxes is None:
            boxes = self._default_boxes(per_image, projected).repeat(images, 1)
        area = (boxes[..., 3] - boxes[..., 2]) * (boxes[..., 1] - boxes[..., 0])
        tokens = projected + self.box_norm(self.box(torch.cat([boxes, area.unsqueeze(-1)], -1)))
        if not self.config.order_embedding:
            return tokens, projected
        self._check_counts(images, per_image)
        if image_order is None:
            image_order = torch.arange(images, device=projected.device).repeat_interleave(per_image).expand(count, -1)
        if cell_order is None:
            cell_order = torch.arange(per_image, device=projected.device).repeat(images).expand(count, -1)
        cell_embeddings = F.embedding(len(word_embeddings) - 1 - cell_order, word_embeddings)
        return tokens + self.image_order(image_order) + cell_embeddings, projected

    def max_pool_grid(self, features: torch.Tensor) -> torch.Tensor:
        """Max-pool each image's grid: [B, I, T, D] -> [B, I, T', D]. From 7x7 to 6x6 this is 2x2 with stride 1.

        Raises:
            InputError: T is not a square number.
        """
        if self.config.pool is None:
            return features
        count, images, cells, width = features.shape
        side = math.isqrt(cells)
        if side * side != cells:
            raise InputError(
                f"visual.pool needs square grids, but an image has {cells} cells; set visual.pool: null to use the "
                "cells as stored"
            )
        grid = features.reshape(count * images, side, side, width).permute(0, 3, 1, 2)
        pooled = F.adaptive_max_pool2d(grid, self.config.pool)
        return pooled.flatten(2).transpose(1, 2).reshape(count, images, -1, width)

    @torch.no_grad()
    def init_input_normalization(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Initialize the projection to ``W (x - mean) / std``, folded into its weight and bias.

        Args:
            mean, std: of each channel over training cells [D]; a constant channel is only centered.
        """
        mean, std = mean.to(self.project.weight), std.to(self.project.weight)
        self.project.weight /= torch.where(std > 1e-6, std, torch.ones_like(std))
        self.project.bias -= self.project.weight @ mean

    def _default_boxes(self, per_image: int, like: torch.Tensor) -> torch.Tensor:
        """Corners (x1, x2, y1, y2) [T', 4] of one image's cells in [0, 1], or zeros as published."""
        if self.config.box_coords == "zeros":
            return like.new_zeros(per_image, 4)
        side = math.isqrt(per_image)
        rows, columns = self.config.pool or (side, side)
        if rows * columns != per_image:
            raise InputError(
                f"visual.box_coords: grid needs square grids, but an image has {per_image} cells; set it to zeros"
            )
        row = torch.arange(rows, device=like.device, dtype=like.dtype).repeat_interleave(columns)
        column = torch.arange(columns, device=like.device, dtype=like.dtype).repeat(rows)
        return torch.stack([column / columns, (column + 1) / columns, row / rows, (row + 1) / rows], -1)

    def _check_counts(self, images: int, per_image: int) -> None:
        if images > self.config.max_images:
            raise InputError(f"visual.max_images is {self.config.max_images}, but a row has {images} images")
        if per_image > self.num_order_tokens:
            raise InputError(
                f"an image has {per_image} cells after pooling, but only {self.num_order_tokens} word embeddings are "
                "reserved for cells (half of backbone.extra_tokens); pool with visual.pool or raise "
                "backbone.extra_tokens"
            )
