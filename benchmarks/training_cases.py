"""Cases of benchmarks/training.py: plain implementations, ours, and their batches."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from transformers.modeling_outputs import BaseModelOutput

from multitask_vl.config import load_config
from multitask_vl.config.schema import Config
from multitask_vl.data.batch import Batch
from multitask_vl.data.collate import Collator
from multitask_vl.data.example_table import load_table
from multitask_vl.data.length_bucketing import BATCHES_PER_BUCKET
from multitask_vl.data.length_cache import row_lengths
from multitask_vl.data.schedule import Schedule, StepPlan
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.tasks.build import build_tasks
from multitask_vl.training.optim import clip_gradients
from multitask_vl.training.state import TrainState
from multitask_vl.training.step import train_step

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MAX_GRAD_NORM = 5.0
PADDED = 20
"""Length that the plain implementation pads texts to."""
TASKS = {
    "captions": {
        "coco_caption": {
            "prompt": "caption: ", "max_input_tokens": PADDED, "max_target_tokens": PADDED, "overflow": "truncate",
            "splits": {"train": {"captions": "coco_captions_text/captions_val2017_part.json.gz", "unit": "caption"}},
        }
    },
    "vqa": {
        "vqa": {
            "prompt": "vqa: ", "max_input_tokens": PADDED, "max_target_tokens": 10, "overflow": "truncate",
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
        plain: loss of transformers and AdamW of torch; otherwise ours.
        order: its batches: ``padded``, ``mixed`` (padded to the longest text) or ``grouped`` (by length).
        precisions: the tables it appears in.
        autocast: whether the plain implementation runs under bf16 autocast.
        micro_batch_size: rows per forward pass; ours only.
    """

    plain: bool
    order: str
    precisions: tuple[str, ...] = ("fp32", "bf16")
    autocast: bool = False
    micro_batch_size: int | None = None


CASES = {
    "plain, padded to 20": Kind(True, "padded"),
    "plain, padded to the longest": Kind(True, "mixed", ("fp32",)),
    "plain, padded to 20, bf16 autocast": Kind(True, "padded", ("bf16",), autocast=True),
    "ours": Kind(False, "mixed"),
    "ours, micro_batch_size 32": Kind(False, "mixed", micro_batch_size=32),
    "ours, group_by_length": Kind(False, "grouped"),
}


class Case:
    """A model with its optimizer.

    Args:
        kind: settings of the case.
        config: configuration of the model.
        precision: ``fp32`` or ``bf16``; plain cases use that of ``kind``.
    """

    def __init__(self, kind: Kind, config: Config, precision: str):
        self.plain, self.order = kind.plain, kind.order
        self.precision = precision if not kind.plain else "bf16" if kind.autocast else "fp32"
        self.model = build_model(config).train()
        self.parameters = self.model.trainable_parameters()
        if self.plain:
            settings = config.training
            self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-5, eps=settings.eps)
        else:
            if self.precision == "bf16":
                self.model.cast_frozen(torch.bfloat16)
            changes = {"lr": 1e-5, "max_grad_norm": MAX_GRAD_NORM, "micro_batch_size": kind.micro_batch_size}
            config = config.model_copy(update={"training": config.training.model_copy(update=changes)})
            tasks = build_tasks(config)
            sizes = dict.fromkeys(tasks, config.training.batch_size)
            schedule = Schedule(sizes, sizes, config.sampling, config.seed)
            accelerator = Accelerator(cpu=True, mixed_precision="bf16" if self.precision == "bf16" else "no")
            self.state = TrainState.create(self.model, tasks, schedule, config, accelerator)

    def step(self, batch: Batch) -> None:
        """Train one step: forward, backward, gradient clipping, AdamW."""
        if self.plain:
            with self._autocast():
                loss = plain_loss(self.model, batch)
            loss.backward()
            clip_gradients(self.parameters.values(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        else:
            train_step(self.state, StepPlan(self.state.step, batch.task, np.arange(len(batch)), 0), batch)

    def mean_loss(self, model: VLSeq2Seq, batch: Batch) -> torch.Tensor:
        """The loss that `step` minimizes."""
        with self._autocast():
            return model(batch).sum() / (batch.labels != -100).sum()

    def _autocast(self):
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()


def plain_loss(model: VLSeq2Seq, batch: Batch) -> torch.Tensor:
    """Loss of the transformers model on the same joint encoder output."""
    with model.context.task_scope(batch.task):
        encoded = model.encode(batch)
        return model.lm(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.hidden_states),
            attention_mask=encoded.token_types,
            labels=batch.labels,
            use_cache=False,
        ).loss


class RandomStore:
    """Feature store that returns random features for any image."""

    def get_many(self, keys: list[str]) -> np.ndarray:
        """[N, 49, 2048]."""
        rng = np.random.default_rng(0)
        return rng.standard_normal((len(keys), 49, 2048), dtype=np.float32).astype(np.float16)


def make_batches(texts: str, data: Path, folder: Path, rows: int, count: int) -> tuple[Config, dict[str, list[Batch]]]:
    """The configuration, and ``count`` batches for each `Kind.order`.

    Args:
        texts: one of `TASKS`.
        data: folder of the reference data.
        folder: receives the compiled table.
        rows: batch size.
        count: number of batches.
    """
    parts = ["base.yaml", "backbones/bart_base_random.yaml", "vision/rn101_random.yaml", "methods/adapter_single.yaml"]
    settings = {
        "compose": [str(CONFIGS / part) for part in parts],
        "backbone": {"tokenizer": str(data / "bart_tokenizer")},
        "data_dir": str(data),
        "cache_dir": str(folder / "cache"),
        "tasks": TASKS[texts],
        "training": {"batch_size": rows},
        "evaluation": {"eval_splits": [], "final_splits": []},
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = load_config(path)
    tokenizer = load_tokenizer(config.backbone)
    ((name, task),) = build_tasks(config).items()
    table = load_table(task, "train", config.cache_dir)
    collator = Collator(task, table, tokenizer, RandomStore())
    lengths = {name: row_lengths(task, table, tokenizer)}
    mixed, grouped = (
        Schedule({name: len(table)}, {name: rows}, config.sampling, config.seed, bucketing)
        for bucketing in (None, lengths)
    )
    by_length = sorted(
        (grouped.plan(step) for step in range(BATCHES_PER_BUCKET)), key=lambda plan: lengths[name][plan.rows].mean()
    )
    selected = [by_length[int((index + 0.5) * len(by_length) / count)] for index in range(count)]
    batches = [collator.train_batch(plan.rows, config.seed, plan.step) for plan in map(mixed.plan, range(count))]
    return config, {
        "mixed": batches,
        "padded": [_pad(batch, texts == "captions", tokenizer.pad_token_id) for batch in batches],
        "grouped": [collator.train_batch(plan.rows, config.seed, plan.step) for plan in selected],
    }


def _pad(batch: Batch, pad_targets: bool, pad_token_id: int) -> Batch:
    missing = PADDED - batch.input_ids.shape[1]
    padded = {
        "input_ids": F.pad(batch.input_ids, (0, missing), value=pad_token_id),
        "attention_mask": F.pad(batch.attention_mask, (0, missing)),
    }
    if pad_targets:
        padded["labels"] = F.pad(batch.labels, (0, PADDED - batch.labels.shape[1]), value=-100)
    return dataclasses.replace(batch, **padded)
