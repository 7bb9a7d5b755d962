"""What do the numbers of a store look like: dead and constant rows, distribution of channels, images out of line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from feature_extraction.maintenance.inspection import checked_rows
from multitask_vl.data.store.format import shards
from multitask_vl.data.store.rows import layout_of_place
from multitask_vl.data.store.writer import Watch
from multitask_vl.errors import InputError

FAR = 8.0
"""Robust standard deviations from the median beyond which an image's norm is out of line."""
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass
class Stats:
    """What was found in the rows that were looked at.

    Attributes:
        rows: done rows of the store.
        read: of these, how many were looked at.
        not_finite: keys of rows with a number that is not finite.
        dead: keys of rows of zeros only.
        constant: keys of rows whose cells are all alike, where there are several cells.
        far: key -> norm, of images whose norm is more than `FAR` robust deviations from the median.
        alike: groups of keys whose features are equal bit by bit, dead ones left out.
        damaged: keys of rows whose checksum failed; they are not in the numbers.
        norms: quantiles `QUANTILES` of an image's norm: the mean L2 norm of its cells.
        means, spreads, zeros: of each channel over all cells of all images [D]: mean, standard deviation, share of
            numbers that are exactly zero.
        least, most: the extreme numbers of all.
    """

    rows: int = 0
    read: int = 0
    not_finite: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    far: dict[str, float] = field(default_factory=dict)
    alike: list[list[str]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    means: np.ndarray = field(default_factory=lambda: np.zeros(0))
    spreads: np.ndarray = field(default_factory=lambda: np.zeros(0))
    zeros: np.ndarray = field(default_factory=lambda: np.zeros(0))
    least: float = 0.0
    most: float = 0.0

    @property
    def sound(self) -> bool:
        """Nothing that no trunk would have made of a picture?"""
        return not (self.not_finite or self.dead or self.damaged)

    @property
    def dead_channels(self) -> np.ndarray:
        """Channels that are zero everywhere."""
        return np.flatnonzero(self.zeros == 1)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain numbers and lists."""
        arrays = {name: getattr(self, name).tolist() for name in ("means", "spreads", "zeros")}
        quantiles = dict(zip(map(str, QUANTILES), self.norms, strict=True))
        return {**self.__dict__, **arrays, "norms": quantiles, "dead_channels": self.dead_channels.tolist()}


def look_at(
    store: Path | str, sample: int | None = None, seed: int = 0, watch: Watch = lambda rows, what: rows
) -> Stats:
    """Read rows of a store and look at their numbers.

    Args:
        store: a file, the name of its shards, or a URL.
        sample: how many rows to draw at random; None: all.
        seed: decides which.
        watch: shows the progress.

    Raises:
        InputError: the store cannot be read, or has no rows yet.
    """
    layouts = [layout_of_place(path) for path in shards(store)]
    done = [(index, row) for index, layout in enumerate(layouts) for row in np.flatnonzero(layout.done).tolist()]
    if not done:
        raise InputError(f"{store}: no row is done yet, so there is nothing to look at")
    if sample is not None and sample < len(done):
        done = [done[at] for at in sorted(np.random.default_rng(seed).choice(len(done), sample, replace=False))]
    stats = Stats(rows=sum(int(layout.done.sum()) for layout in layouts))
    sums, norms, twins = _Sums(layouts[0].shape[1]), {}, {}
    for index, layout in enumerate(layouts):
        mine = [row for which, row in done if which == index]
        for row, good, features in checked_rows(layout, watch, "looking at rows", mine):
            key = layout.keys[row].decode()
            if not good:
                stats.damaged.append(key)
                continue
            stats.read += 1
            numbers = features.astype(np.float32)
            if not np.isfinite(numbers).all():
                stats.not_finite.append(key)
                continue
            if not numbers.any():
                stats.dead.append(key)
            else:
                twins.setdefault((int(layout.crc32[row]), features[:1].tobytes()), []).append(key)
                if len(numbers) > 1 and (numbers == numbers[0]).all():
                    stats.constant.append(key)
            norms[key] = float(np.linalg.norm(numbers, axis=1).mean())
            sums.add(numbers)
    stats.alike = [keys for keys in twins.values() if len(keys) > 1]
    stats.far = _out_of_line(norms)
    if norms:
        stats.norms = [float(value) for value in np.quantile(list(norms.values()), QUANTILES)]
        stats.means, stats.spreads, stats.zeros = sums.moments()
        stats.least, stats.most = sums.least, sums.most
    else:
        stats.norms = [float("nan")] * len(QUANTILES)
    return stats


class _Sums:
    """Sums over cells, by channel, in double precision and about the first image's means, so that nothing cancels."""

    def __init__(self, channels: int):
        self.count = 0
        self.about: np.ndarray | None = None
        self.first, self.second, self.zeros = np.zeros((3, channels))
        self.least, self.most = np.inf, -np.inf

    def add(self, cells: np.ndarray) -> None:
        """Count the cells [T, D] of one more image."""
        if self.about is None:
            self.about = cells.mean(0, dtype=np.float64)
        apart = cells - self.about
        self.count += len(cells)
        self.first += apart.sum(0)
        self.second += np.square(apart).sum(0)
        self.zeros += (cells == 0).sum(0)
        self.least, self.most = min(self.least, float(cells.min())), max(self.most, float(cells.max()))

    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, standard deviation and share of zeros of each channel [D]."""
        mean = self.first / self.count
        spread = np.sqrt(np.maximum(self.second / self.count - mean**2, 0))
        return self.about + mean, spread, self.zeros / self.count


def _out_of_line(norms: dict[str, float]) -> dict[str, float]:
    if not norms:
        return {}
    values = np.array(list(norms.values()))
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    apart = np.abs(values - middle)
    far = apart > FAR * spread if spread > 0 else apart > 1e-3 * abs(middle)
    found = sorted(((key, norm) for (key, norm), is_far in zip(norms.items(), far, strict=True) if is_far),
                   key=lambda one: -abs(one[1] - middle))  # fmt: skip
    return dict(found)
