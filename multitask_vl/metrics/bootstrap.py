"""How sure is a mean over examples: the interval in which resampled sets of examples have theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 95
RESAMPLES = 1000
_DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A confidence interval, on the scale of the values.

    Attributes:
        resampled: of what the resamples were drawn (questions, sentences, ...), for labels.
        level: share of the resamples' means that lie in it, in percent.
    """

    low: float
    high: float
    resampled: str
    level: int = LEVEL

    def as_json(self) -> dict:
        """``{"interval": [low, high], "level", "resampled"}``, as scores.json has it."""
        return {"interval": [self.low, self.high], "level": self.level, "resampled": self.resampled}


def interval_of_mean(
    values: Sequence[float], resampled: str, seed: int = 0, resamples: int = RESAMPLES, level: int = LEVEL
) -> Interval:
    """Percentile bootstrap (Efron 1979) of a mean: draw n of n values with replacement, often, and look at the means.

    It is about the draw of examples alone: not about seeds of training, and examples that share a picture or a
    sentence count as independent. To resample groups, give the value of each group.

    Args:
        values: [n], n >= 1.
        resampled: what one value belongs to, in the plural.
        seed: the same seed and values give the same interval, on every process.
    """
    # n draws with replacement are one multinomial draw over the distinct values, which are few for most metrics
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    rng, total = np.random.default_rng([seed, 6]), int(counts.sum())
    rows = max(1, _DRAWN_AT_ONCE // len(distinct))
    means = np.concatenate(
        [
            rng.multinomial(total, counts / total, size=min(rows, resamples - start)) @ distinct / total
            for start in range(0, resamples, rows)
        ]
    )
    tail = (100 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(low), float(high), resampled, level)
