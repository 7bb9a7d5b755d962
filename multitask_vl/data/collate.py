"""How do rows become a batch: prompt and text to tokens, image keys to features, a drawn answer to labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset

from multitask_vl.data.batch import Batch
from multitask_vl.data.example_table import column
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError
from multitask_vl.tasks.base import Task


class Collator:
    """Makes batches of one task's split.

    Args:
        task: prompt, limits and target policy.
        table: the compiled split.
        tokenizer: of the backbone, extra tokens included.
        store: grid features by image key.
        stand_in: image key -> key whose features it gets instead; the blind control. Empty: every image its own.
    """

    def __init__(
        self, task: Task, table: Dataset, tokenizer, store: FeatureStore, stand_in: dict[str, str] | None = None
    ):
        self.task = task
        self.table = table
        self.tokenizer = tokenizer
        self.store = store
        self.stand_in = stand_in or {}

    def first(self, count: int) -> Collator:
        """A collator of only the first ``count`` rows."""
        table = self.table.select(range(min(count, len(self.table))))
        return Collator(self.task, table, self.tokenizer, self.store, self.stand_in)

    def training(self, rows: Sequence[int], seed: int, step: int, offset: int = 0, stride: int = 1) -> Batch:
        """The batch of a training step.

        Args:
            rows: row ids [B] of this process.
            seed, step: decide which answer each row learns on this visit.
            offset, stride: row i of this call is row ``offset + i * stride`` of the global batch, so that a row's draw
                does not depend on how many processes share the batch.
        """
        columns = self.table[list(map(int, rows))]
        found = [
            self.task.targets(answers, scores, np.random.default_rng([seed, 2, step, offset + i * stride]))
            for i, (answers, scores) in enumerate(zip(columns["answers"], columns["scores"], strict=True))
        ]
        targets, weights, shares = zip(*(target for row in found for target in row), strict=True)
        batch = self._inputs(columns, rows).repeated([len(row) for row in found])
        labels = self.tokenizer(
            list(targets), padding=True, truncation=self.task.config.max_target_tokens is not None,
            max_length=self.task.config.max_target_tokens, return_tensors="pt",
        )  # fmt: skip
        batch.labels = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
        batch.weights = torch.tensor(weights, dtype=torch.float32)
        if set(shares) != {1.0}:
            batch.shares = torch.tensor(shares, dtype=torch.float32)
        return batch

    def predicting(self, rows: Sequence[int]) -> Batch:
        """The batch of rows whose targets are to be predicted."""
        return self._inputs(self.table[list(map(int, rows))], rows)

    def _inputs(self, columns: dict, rows: Sequence[int]) -> Batch:
        config = self.task.config
        text = self.tokenizer(
            [config.prompt + text for text in columns["text"]], padding=True,
            truncation=config.max_input_tokens is not None, max_length=config.max_input_tokens, return_tensors="pt",
        )  # fmt: skip
        keys = [self.stand_in.get(key, key) for images in columns["images"] for key in images]
        distinct = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        features = torch.from_numpy(self.store.get_many(list(distinct)))
        images = None
        if len(distinct) < len(keys):
            images = torch.tensor([distinct[key] for key in keys]).view(len(columns["id"]), -1)
        else:
            features = features.view(len(columns["id"]), -1, *features.shape[1:])
        return Batch(
            task=self.task.name,
            ids=list(columns["id"]),
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            features=features,
            images=images,
            rows=torch.as_tensor(np.asarray(rows, dtype=np.int64)),
        )


def missing_features(task: Task, missing: Sequence[str], asked: int, split: str) -> list[str]:
    """Problems with image keys of a split that the feature store does not hold: ``missing`` of ``asked``."""
    if not missing:
        return []
    return [
        f"tasks.{task.name}: {len(missing):,} of {asked:,} image keys of split '{split}' are missing in the feature "
        f"store (first: {missing[0]}). Run: python launch/extract_features.py --config CONFIG, or compare image_key of "
        f"the split with: python -m feature_extraction.maintenance.manage inspect STORE"
    ]


def image_keys(*tables: Dataset) -> list[str]:
    """All image keys of some tables, sorted, each once."""
    found = (pc.unique(pc.list_flatten(column(table, "images"))).to_pylist() for table in tables)
    return sorted({key for keys in found for key in keys})


def shuffled_images(tables: Sequence[Dataset], seed: int) -> dict[str, str]:
    """The blind control's map: every image key of ``tables`` to another one, a permutation without fixed points.

    Raises:
        InputError: with fewer than two images there is nothing to exchange.
    """
    keys = image_keys(*tables)
    if len(keys) < 2:
        raise InputError("features.control=shuffled needs at least two images")
    order = np.random.default_rng([seed, 3]).permutation(len(keys))
    # walking once round a shuffled circle leaves nobody in place
    return {keys[order[i]]: keys[order[(i + 1) % len(keys)]] for i in range(len(keys))}
