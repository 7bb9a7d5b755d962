"""In which order can a slow disk be read that is still shuffled: blocks of neighbouring rows, mixed a few at a time."""

from __future__ import annotations

import numpy as np

BLOCK_ROWS = 256
MIXED = 8


def block_order(
    places: np.ndarray, seed: int, epoch: int, block_rows: int = BLOCK_ROWS, mixed: int = MIXED
) -> list[np.ndarray]:
    """Items by where their rows lie, as pools that are each read from a few contiguous stretches of the store.

    The store is cut into blocks of `block_rows` rows, at other places in each epoch. Blocks come in random order;
    `mixed` of them that follow one another are a pool, and within a pool items come in random order. A pure function of
    its arguments. What it costs: items whose rows are neighbours fall into the same pool, so a batch is a sample of
    `mixed` random stretches rather than of everything. With `block_rows` of 1 the order is uniformly random.

    Args:
        places: position in the store of each item's row [N] (`FeatureStore.places`); several items may share a row.
        seed, epoch: decide the order.

    Returns:
        Pools in order, each an array of positions in `places`; together every position once.
    """
    places = np.asarray(places)
    if not len(places):
        return []
    rng = np.random.default_rng([seed, 6, epoch])
    blocks = (places + int(rng.integers(block_rows))) // block_rows
    rank = np.empty(int(blocks.max()) + 1, dtype=np.int64)
    there = np.unique(blocks)
    rank[there] = rng.permutation(len(there))
    pools = rank[blocks] // mixed
    order = np.lexsort((rng.random(len(places)), pools))
    return np.split(order, np.flatnonzero(np.diff(pools[order])) + 1)
