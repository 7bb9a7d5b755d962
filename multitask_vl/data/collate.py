"""Collation of rows into batches: tokenized prompts and texts, features by image key, sampled answers as labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset

from multitask_vl.data.batch import Batch
from multitask_vl.data.example_table import arrow_column
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import EXTRACT_COMMAND
from multitask_vl.errors import InputError
from multitask_vl.tasks.base import Task


class Collator:
    """Batches of one split of one task.

    Args:
        task: supplies prompt, token limits and target sampling.
        table: the example table of the split.
        tokenizer: of the backbone, including added tokens.
        store: grid features by image key.
        image_substitution: image key -> key whose features it gets instead, for the shuffled-image control.
    """

    def __init__(
        self,
        task: Task,
        table: Dataset,
        tokenizer,
        store: FeatureStore,
        image_substitution: dict[str, str] | None = None,
    ):
        self.task = task
        self.table = table
        self.tokenizer = tokenizer
        self.store = store
        self.image_substitution = image_substitution or {}

    def head(self, count: int) -> Collator:
        """Return a collator of the first ``count`` rows."""
        table = self.table.select(range(min(count, len(self.table))))
        return Collator(self.task, table, self.tokenizer, self.store, self.image_substitution)

    def train_batch(self, rows: Sequence[int], seed: int, step: int, offset: int = 0, stride: int = 1) -> Batch:
        """Return the batch of a training step, with labels.

        Args:
            rows: row ids [B] of this process.
            seed, step: decide which answer of each row is sampled as its target.
            offset, stride: row i of this call is row ``offset + i * stride`` of the global batch, so that a row's
                target does not depend on how many processes share the batch.
        """
        columns = self.table[list(map(int, rows))]
        sampled = [
            self.task.targets(answers, scores, np.random.default_rng([seed, 2, step, offset + i * stride]))
            for i, (answers, scores) in enumerate(zip(columns["answers"], columns["scores"], strict=True))
        ]
        targets, weights, fractions = zip(*(target for row in sampled for target in row), strict=True)
        batch = self._inputs(columns, rows).repeat_rows([len(row) for row in sampled])
        labels = self.tokenizer(
            list(targets), padding=True, truncation=self.task.config.max_target_tokens is not None,
            max_length=self.task.config.max_target_tokens, return_tensors="pt",
        )  # fmt: skip
        batch.labels = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
        batch.weights = torch.tensor(weights, dtype=torch.float32)
        if set(fractions) != {1.0}:
            batch.target_fraction = torch.tensor(fractions, dtype=torch.float32)
        return batch

    def eval_batch(self, rows: Sequence[int]) -> Batch:
        """Return the batch of some rows [B] for prediction, without labels."""
        return self._inputs(self.table[list(map(int, rows))], rows)

    def _inputs(self, columns: dict, rows: Sequence[int]) -> Batch:
        config = self.task.config
        text = self.tokenizer(
            [config.prompt + text for text in columns["text"]], padding=True,
            truncation=config.max_input_tokens is not None, max_length=config.max_input_tokens, return_tensors="pt",
        )  # fmt: skip
        keys = [self.image_substitution.get(key, key) for images in columns["images"] for key in images]
        distinct = {key: position for position, key in enumerate(dict.fromkeys(keys))}
        features = torch.from_numpy(self.store.get_many(list(distinct)))
        image_index = None
        if len(distinct) < len(keys):
            image_index = torch.tensor([distinct[key] for key in keys]).view(len(columns["id"]), -1)
        else:
            features = features.view(len(columns["id"]), -1, *features.shape[1:])
        return Batch(
            task=self.task.name,
            ids=list(columns["id"]),
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            features=features,
            image_index=image_index,
            rows=torch.as_tensor(np.asarray(rows, dtype=np.int64)),
        )


def missing_features(task: Task, missing: Sequence[str], total: int, split: str) -> list[str]:
    """Return the problem of image keys without features: ``missing`` of the ``total`` distinct keys of a split."""
    if not missing:
        return []
    return [
        f"tasks.{task.name}: {len(missing):,} of {total:,} image keys of split '{split}' are missing in the feature "
        f"store (first: {missing[0]}). Run: {EXTRACT_COMMAND}, or compare image_key of the split with: "
        "multitask-vl store inspect STORE"
    ]


def image_keys(*tables: Dataset) -> list[str]:
    """Return all distinct image keys of some example tables, sorted."""
    per_table = (pc.unique(pc.list_flatten(arrow_column(table, "images"))).to_pylist() for table in tables)
    return sorted({key for keys in per_table for key in keys})


def shuffled_images(tables: Sequence[Dataset], seed: int) -> dict[str, str]:
    """Return the shuffled-image control: every image key of ``tables`` -> another one, without fixed points.

    Raises:
        InputError: there are fewer than two images.
    """
    keys = image_keys(*tables)
    if len(keys) < 2:
        raise InputError("features.shuffle_images=true needs at least two images")
    order = np.random.default_rng([seed, 3]).permutation(len(keys))
    # each key maps to its successor in a random cycle, so none maps to itself
    return {keys[order[i]]: keys[order[(i + 1) % len(keys)]] for i in range(len(keys))}
