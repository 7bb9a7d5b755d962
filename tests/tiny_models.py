"""Models of a few thousand parameters and batches for them, shared by the tests of models and methods."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from multitask_vl.config.schema import BackboneConfig, Config, RoutingConfig, TaskConfig, VisualConfig
from multitask_vl.data.batch import Batch
from multitask_vl.models.build import build_model
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.registry import METHODS

TASKS = ("vqa", "nlvr2")
SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}
FAMILIES = {
    "bart": SIZES,
    # attention wider than the model and fewer buckets than tokens, so that no shapes agree by accident
    "t5": {
        "d_model": 16,
        "d_kv": 12,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 60,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
    },
}
"""Sizes of each family."""
SMALL = {"rank": 16, "factor_rank": 4, "num_tokens": 5, "task_dim": 12, "hidden_dim": 10, "projected_dim": 4}
"""Sizes of methods. With rank 1, text and image may share no positive entry, and mm1_relu would be zero."""


def tiny_config(
    method: str = "frozen", routing: dict[str, Any] | None = None, family: str = "bart", **settings: Any
) -> Config:
    """A configuration of two tasks. ``settings`` are the method's; its sizes are those of `SMALL`."""
    section = METHODS.get(method).Config
    settings = {key: size for key, size in SMALL.items() if key in section.model_fields} | settings
    return Config(
        seed=7,
        backbone=BackboneConfig(family=family, config=FAMILIES[family], extra_tokens=80, dropout=0.1),
        visual=VisualConfig(feature_dim=8, pool=(6, 6)),
        tasks={task: TaskConfig() for task in TASKS},
        method=[section(name=method, **settings)],
        routing=RoutingConfig(**(routing or {})),
    )


def tiny_model(
    method: str = "frozen", routing: dict[str, Any] | None = None, family: str = "bart", **settings: Any
) -> VLSeq2Seq:
    """The model of `tiny_config`, in eval mode."""
    return build_model(tiny_config(method, routing, family, **settings)).eval()


def perturb(model: VLSeq2Seq, std: float = 0.3, seed: int = 11) -> VLSeq2Seq:
    """Add noise to all trainable parameters in place, so that none has its initial value; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return model


def tiny_batch(task: str = "vqa", images: int = 1, rows: int = 3) -> Batch:
    """Rows with texts and targets of unequal length and 7x7 grids."""
    generator = torch.Generator().manual_seed(5)
    lengths, targets = torch.tensor([7, 4, 6][:rows]), torch.tensor([4, 3, 2][:rows])
    input_ids = torch.randint(3, 50, (rows, 7), generator=generator)
    mask = torch.arange(7) < lengths[:, None]
    labels = torch.randint(3, 50, (rows, 4), generator=generator)
    return Batch(
        task=task,
        ids=[f"{task}-{row}" for row in range(rows)],
        input_ids=input_ids.masked_fill(~mask, 1),
        attention_mask=mask.long(),
        features=torch.randn(rows, images, 49, 8, generator=generator).half(),
        labels=labels.masked_fill(torch.arange(4) >= targets[:, None], -100),
        weights=torch.tensor([1.0, 0.3, 0.6][:rows]),
        rows=torch.arange(rows),
    )


def padded(batch: Batch, more: int) -> Batch:
    """The same rows with ``more`` columns of padding after their texts."""
    pad = batch.input_ids.new_full((len(batch), more), 1)
    return dataclasses.replace(
        batch,
        input_ids=torch.cat([batch.input_ids, pad], 1),
        attention_mask=torch.cat([batch.attention_mask, torch.zeros_like(pad)], 1),
    )


def loss_of(model: VLSeq2Seq, batch: Batch) -> torch.Tensor:
    """A scalar to differentiate."""
    return model(batch).sum()
