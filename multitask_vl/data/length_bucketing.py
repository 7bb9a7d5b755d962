"""Length bucketing: rows sorted by length within stretches of a shuffled epoch, in shuffled batches."""

from __future__ import annotations

import numpy as np

BATCHES_PER_BUCKET = 50
"""Batches that rows are sorted over. A larger value saves little more padding and reduces randomness."""


def bucket_by_length(order: np.ndarray, lengths: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Reorder rows so that each batch of ``size`` has rows of similar length.

    The last batch, which may be smaller, keeps its rows whatever their lengths.

    Args:
        order: row ids of one epoch in random order [n].
        lengths: sort key of each row of the task; larger means longer.
        size: rows per batch.
        rng: shuffles the batches.

    Returns:
        the same row ids in the new order [n].
    """
    full = len(order) // size * size
    batches = []
    for start in range(0, full, size * BATCHES_PER_BUCKET):
        bucket = order[start : min(start + size * BATCHES_PER_BUCKET, full)]
        # stable, so that rows of the same length stay in random order
        batches.append(bucket[np.argsort(lengths[bucket], kind="stable")].reshape(-1, size))
    if not batches:
        return order
    shuffled = rng.permutation(np.concatenate(batches))
    return np.concatenate([shuffled.ravel(), order[full:]])
