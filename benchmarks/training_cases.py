"""What takes training steps in benchmarks/training.py: the plain ways, ours, and the batches that they all get."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from transformers.modeling_outputs import BaseModelOutput

from multitask_vl.config import load_config
from multitask_vl.config.schema import Config
from multitask_vl.data.batch import Batch
from multitask_vl.data.collate import Collator
from multitask_vl.data.example_table import compiled
from multitask_vl.data.length_groups import BATCHES_SORTED
from multitask_vl.data.row_lengths import row_lengths
from multitask_vl.data.schedule import Schedule
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.tasks.build import build_tasks
from multitask_vl.training.optim import build_optimizer, clip_gradients

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PADDED = 20
"""Tokens that the plain way pads to."""
TASKS = {
    "captions": {
        "coco_caption": {
            "prompt": "caption: ", "max_input_tokens": PADDED, "max_target_tokens": PADDED, "too_long": "truncate",
            "splits": {"train": {"captions": "coco_captions_text/captions_val2017_part.json.gz", "one_per": "caption"}},
        }
    },
    "vqa": {
        "vqa": {
            "prompt": "vqa: ", "max_input_tokens": PADDED, "max_target_tokens": 10, "too_long": "truncate",
            "splits": {
                "train": {
                    "questions": "vqav2_60k/vqa_questions_train.json.gz",
                    "annotations": "vqav2_60k/vqa_annotations_train.json.gz",
                    "image_key": "{image_id:012d}",
                }
            },
        }
    },
}  # fmt: skip


class Kind(NamedTuple):
    """Settings of a case.

    Attributes:
        plain: the library's loss and torch's AdamW; otherwise ours.
        order: which batches it gets: ``padded``, ``mixed`` (to the longest) or ``grouped`` (by length).
        precisions: of the tables it stands in.
        autocast: plain only: under bf16 autocast.
        micro: ours only: rows of a forward pass.
    """

    plain: bool
    order: str
    precisions: tuple[str, ...] = ("fp32", "bf16")
    autocast: bool = False
    micro: int | None = None


CASES = {
    "plain, padded to 20": Kind(True, "padded"),
    "plain, padded to the longest": Kind(True, "mixed", ("fp32",)),
    "plain, padded to 20, bf16 autocast": Kind(True, "padded", ("bf16",), autocast=True),
    "ours": Kind(False, "mixed"),
    "ours, micro_batch_size 32": Kind(False, "mixed", micro=32),
    "ours, group_by_length": Kind(False, "grouped"),
}


class Case:
    """A model and its optimiser.

    Args:
        kind: what to do.
        config: the model's.
        precision: ``fp32`` or ``bf16``; plain cases take theirs from ``kind``.
    """

    def __init__(self, kind: Kind, config: Config, precision: str):
        self.plain, self.order, self.micro = kind.plain, kind.order, kind.micro
        self.precision = precision if not kind.plain else "bf16" if kind.autocast else "fp32"
        self.model = build_model(config).train()
        self.parameters = self.model.trainable()
        if self.plain:
            settings = config.training
            self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-5, eps=settings.eps)
        else:
            self.optimizer = build_optimizer(self.parameters, config.training.model_copy(update={"lr": 1e-5}))
            if self.precision == "bf16":
                self.model.hold_frozen(torch.bfloat16)

    def step(self, batch: Batch) -> None:
        """Forward, backward, clipping, AdamW."""
        if self.plain:
            with self._autocast():
                loss = plain_loss(self.model, batch)
            loss.backward()
        else:
            count = (batch.labels != -100).sum()
            for piece in batch.pieces(self.micro):
                with self._autocast():
                    loss = self.model(piece).sum() / count
                loss.backward()
        clip_gradients(self.parameters.values(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def mean_loss(self, model: VLSeq2Seq, batch: Batch) -> torch.Tensor:
        """What `step` differentiates."""
        with self._autocast():
            return model(batch).sum() / (batch.labels != -100).sum()

    def _autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()


def plain_loss(model: VLSeq2Seq, batch: Batch) -> torch.Tensor:
    """The library's model with its own loss, over the same joint encoder."""
    with model.context.of(batch.task):
        encoded = model.encode(batch)
        return model.lm(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
            attention_mask=encoded.kinds,
            labels=batch.labels,
            use_cache=False,
        ).loss


class RandomStore:
    """Features of any image: numbers."""

    def get_many(self, keys: list[str]) -> np.ndarray:
        """[N, 49, 2048]."""
        rng = np.random.default_rng(0)
        return rng.standard_normal((len(keys), 49, 2048), dtype=np.float32).astype(np.float16)


def batches_of(texts: str, data: Path, folder: Path, rows: int, count: int) -> tuple[Config, dict[str, list[Batch]]]:
    """The configuration, and ``count`` batches as each kind of case gets them.

    Args:
        texts: one of `TASKS`.
        data: the reference data.
        folder: for the compiled table.
    """
    parts = ["base.yaml", "backbones/bart_base_random.yaml", "vision/rn101_random.yaml", "methods/adapter_single.yaml"]
    settings = {
        "compose": [str(CONFIGS / part) for part in parts],
        "backbone": {"tokenizer": str(data / "bart_tokenizer")},
        "data_dir": str(data),
        "cache_dir": str(folder / "cache"),
        "tasks": TASKS[texts],
        "evaluation": {"during": [], "final": []},
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = load_config(path)
    tokenizer = load_tokenizer(config.backbone)
    ((name, task),) = build_tasks(config).items()
    table = compiled(task, "train", config.cache_dir)
    collator = Collator(task, table, tokenizer, RandomStore())
    lengths = {name: row_lengths(task, table, tokenizer)}
    mixed, grouped = (
        Schedule({name: len(table)}, {name: rows}, config.mixing, config.seed, found) for found in (None, lengths)
    )
    by_length = sorted(
        (grouped.draw(step) for step in range(BATCHES_SORTED)), key=lambda d: lengths[name][d.rows].mean()
    )
    spread = [by_length[int((place + 0.5) * len(by_length) / count)] for place in range(count)]
    got = [collator.training(draw.rows, config.seed, draw.step) for draw in map(mixed.draw, range(count))]
    return config, {
        "mixed": got,
        "padded": [_padded(batch, texts == "captions", tokenizer.pad_token_id) for batch in got],
        "grouped": [collator.training(draw.rows, config.seed, draw.step) for draw in spread],
    }


def _padded(batch: Batch, targets: bool, pad: int) -> Batch:
    more = PADDED - batch.input_ids.shape[1]
    padded = {
        "input_ids": F.pad(batch.input_ids, (0, more), value=pad),
        "attention_mask": F.pad(batch.attention_mask, (0, more)),
    }
    if targets:
        padded["labels"] = F.pad(batch.labels, (0, PADDED - batch.labels.shape[1]), value=-100)
    return dataclasses.replace(batch, **padded)
