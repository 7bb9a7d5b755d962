"""Statistics of a store: all-zero and constant rows, duplicates, outliers and channel statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from feature_extraction.maintenance.inspection import checked_rows
from multitask_vl.data.store.format import StoreHeader, shard_files
from multitask_vl.data.store.progress import ProgressFn, no_progress
from multitask_vl.data.store.row_reader import read_header
from multitask_vl.errors import InputError

OUTLIER_THRESHOLD = 8.0
"""Robust standard deviations from the median beyond which the norm of an image is an outlier."""
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass
class StoreStats:
    """Statistics of the rows that were read.

    Attributes:
        rows: done rows of the store.
        rows_read: rows that were read.
        nonfinite: keys of rows with values that are not finite; not in the statistics.
        all_zero: keys of rows of zeros only.
        constant: keys of rows whose grid cells are all equal, if there are several cells.
        outliers: key -> norm of images more than `OUTLIER_THRESHOLD` robust deviations from the median.
        duplicates: groups of keys with identical features, without all-zero rows.
        corrupt: keys of rows whose checksum failed; not in the statistics.
        norms: `QUANTILES` of the norm of an image, the mean L2 norm of its grid cells.
        channel_means, channel_stds, zero_fractions: mean, standard deviation and fraction of exact zeros of each
            channel over all cells of all images [D].
        min, max: smallest and largest value.
    """

    rows: int = 0
    rows_read: int = 0
    nonfinite: list[str] = field(default_factory=list)
    all_zero: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    outliers: dict[str, float] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    channel_means: np.ndarray = field(default_factory=lambda: np.zeros(0))
    channel_stds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    zero_fractions: np.ndarray = field(default_factory=lambda: np.zeros(0))
    min: float = 0.0
    max: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no row is corrupt, all-zero or not finite."""
        return not (self.nonfinite or self.all_zero or self.corrupt)

    @property
    def zero_channels(self) -> np.ndarray:
        """Channels that are zero everywhere."""
        return np.flatnonzero(self.zero_fractions == 1)

    def as_json(self) -> dict[str, Any]:
        """Return all fields as plain numbers and lists."""
        arrays = {name: getattr(self, name).tolist() for name in ("channel_means", "channel_stds", "zero_fractions")}
        quantiles = dict(zip(map(str, QUANTILES), self.norms, strict=True))
        return {**self.__dict__, **arrays, "norms": quantiles, "zero_channels": self.zero_channels.tolist()}


def compute_stats(
    store: Path | str, sample: int | None = None, seed: int = 0, progress: ProgressFn = no_progress
) -> StoreStats:
    """Compute statistics over the rows of a store.

    Args:
        store: a file, the common name of its shards, or a URL.
        sample: number of random rows to read; None: all.
        seed: random seed of the sample.
        progress: shows the progress.

    Raises:
        InputError: the store cannot be read, or has no rows yet.
    """
    headers = [read_header(path) for path in shard_files(store)]
    stats = StoreStats(rows=sum(int(header.done.sum()) for header in headers))
    moments, norms, keys_by_features = _RunningMoments(headers[0].shape[1]), {}, {}
    for header, rows in zip(headers, _select_rows(store, headers, sample, seed), strict=True):
        for row, valid, features in checked_rows(header, progress, "reading rows", rows):
            key = header.keys[row].decode()
            if not valid:
                stats.corrupt.append(key)
                continue
            stats.rows_read += 1
            values = features.astype(np.float32)
            if not np.isfinite(values).all():
                stats.nonfinite.append(key)
                continue
            if not values.any():
                stats.all_zero.append(key)
            else:
                keys_by_features.setdefault((int(header.crc32[row]), features[:1].tobytes()), []).append(key)
                if len(values) > 1 and (values == values[0]).all():
                    stats.constant.append(key)
            norms[key] = float(np.linalg.norm(values, axis=1).mean())
            moments.add(values)
    stats.duplicates = [keys for keys in keys_by_features.values() if len(keys) > 1]
    stats.outliers = _find_outliers(norms)
    if norms:
        stats.norms = [float(value) for value in np.quantile(list(norms.values()), QUANTILES)]
        stats.channel_means, stats.channel_stds, stats.zero_fractions = moments.result()
        stats.min, stats.max = moments.min, moments.max
    else:
        stats.norms = [float("nan")] * len(QUANTILES)
    return stats


def _select_rows(store: Path | str, headers: list[StoreHeader], sample: int | None, seed: int) -> Iterable[list[int]]:
    """Return the rows to read of each file."""
    done = [(index, row) for index, header in enumerate(headers) for row in np.flatnonzero(header.done).tolist()]
    if not done:
        raise InputError(f"{store}: no row has features yet; extract them first")
    if sample is not None and sample < len(done):
        done = [done[i] for i in sorted(np.random.default_rng(seed).choice(len(done), sample, replace=False))]
    return [[row for index, row in done if index == wanted] for wanted in range(len(headers))]


class _RunningMoments:
    """Sums per channel in float64, relative to the first image's means to avoid cancellation."""

    def __init__(self, channels: int):
        self.count = 0
        self.origin: np.ndarray | None = None
        self.first, self.second, self.zeros = np.zeros((3, channels))
        self.min, self.max = np.inf, -np.inf

    def add(self, cells: np.ndarray) -> None:
        """Add the grid cells [T, D] of an image."""
        if self.origin is None:
            self.origin = cells.mean(0, dtype=np.float64)
        deviations = cells - self.origin
        self.count += len(cells)
        self.first += deviations.sum(0)
        self.second += np.square(deviations).sum(0)
        self.zeros += (cells == 0).sum(0)
        self.min, self.max = min(self.min, float(cells.min())), max(self.max, float(cells.max()))

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, standard deviation and fraction of zeros of each channel [D]."""
        mean = self.first / self.count
        std = np.sqrt(np.maximum(self.second / self.count - mean**2, 0))
        return self.origin + mean, std, self.zeros / self.count


def _find_outliers(norms: dict[str, float]) -> dict[str, float]:
    """Return the outliers, most extreme first."""
    if not norms:
        return {}
    values = np.array(list(norms.values()))
    median = np.median(values)
    deviations = np.abs(values - median)
    std = 1.4826 * np.median(deviations)  # of a normal distribution with this median absolute deviation
    is_outlier = deviations > OUTLIER_THRESHOLD * std if std > 0 else deviations > 1e-3 * abs(median)
    outliers = [(key, norm) for (key, norm), found in zip(norms.items(), is_outlier, strict=True) if found]
    return dict(sorted(outliers, key=lambda entry: -abs(entry[1] - median)))
