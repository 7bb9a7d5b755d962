"""How do rows of like length share a batch: sorted within stretches of a shuffled pass, whose batches are shuffled."""

from __future__ import annotations

import numpy as np

BATCHES_SORTED = 50
"""Batches that rows are sorted over. More save hardly more padding, and leave less to chance."""


def grouped(order: np.ndarray, lengths: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """An order of the same rows in which each stretch of ``size`` has rows of like length.

    The last stretch keeps the rows that it has, whatever their lengths, since it may be shorter than the others.

    Args:
        order: row ids of one pass in random order [n].
        lengths: a number for each row of the task, the larger the longer.
        size: rows of a batch.
        rng: shuffles the batches.
    """
    full = len(order) // size * size
    batches = []
    for start in range(0, full, size * BATCHES_SORTED):
        stretch = order[start : min(start + size * BATCHES_SORTED, full)]
        # stable, so that rows of the same length stay in random order
        batches.append(stretch[np.argsort(lengths[stretch], kind="stable")].reshape(-1, size))
    if not batches:
        return order
    shuffled = rng.permutation(np.concatenate(batches))
    return np.concatenate([shuffled.ravel(), order[full:]])
