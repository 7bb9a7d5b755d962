"""Bootstrap confidence interval of a mean over examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 95
RESAMPLES = 1000
_MAX_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class ConfidenceInterval:
    """A confidence interval, on the scale of the values.

    Attributes:
        low, high: ends of the interval.
        unit: what was resampled (questions, sentences, ...), for labels.
        level: confidence level in percent.
    """

    low: float
    high: float
    unit: str
    level: int = LEVEL

    def as_json(self) -> dict:
        """Entry of scores.json: ``{"interval": [low, high], "level", "unit"}``."""
        return {"interval": [self.low, self.high], "level": self.level, "unit": self.unit}


def bootstrap_mean_ci(
    values: Sequence[float], unit: str, seed: int = 0, resamples: int = RESAMPLES, level: int = LEVEL
) -> ConfidenceInterval:
    """Percentile bootstrap (Efron 1979) of a mean: the percentiles of the means of resamples with replacement.

    The interval covers the sampling of examples only, not training seeds. Examples are resampled independently, even if
    they share an image or a sentence; to resample groups, pass one value per group.

    Args:
        values: [n], n >= 1.
        unit: what one value belongs to, in the plural.
        seed: the same seed and values give the same interval, on every rank.
        resamples: number of resamples.
        level: confidence level in percent.
    """
    # n draws with replacement are one multinomial draw over the distinct values, of which most metrics have few
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    rng, total = np.random.default_rng([seed, 6]), int(counts.sum())
    rows = max(1, _MAX_CHUNK_ELEMENTS // len(distinct))
    means = np.concatenate(
        [
            rng.multinomial(total, counts / total, size=min(rows, resamples - start)) @ distinct / total
            for start in range(0, resamples, rows)
        ]
    )
    tail = (100 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return ConfidenceInterval(float(low), float(high), unit, level)
