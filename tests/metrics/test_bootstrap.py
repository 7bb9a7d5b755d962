"""Bootstrap confidence intervals: agreement with theory and plain resampling, and reproducibility."""

import numpy as np
import pytest

from multitask_vl.metrics import bootstrap
from multitask_vl.metrics.bootstrap import bootstrap_mean_ci


def test_bootstrap_of_binary_values_equals_binomial_interval():
    found = bootstrap_mean_ci([0.0] * 160 + [100.0] * 240, "questions", resamples=20_000)
    half_width = 1.96 * 100 * np.sqrt(0.6 * 0.4 / 400)
    assert found.low == pytest.approx(60 - half_width, abs=0.3)
    assert found.high == pytest.approx(60 + half_width, abs=0.3)
    assert found.as_json() == {"interval": [found.low, found.high], "level": 95, "unit": "questions"}


def test_bootstrap_equals_plain_resampling():
    values = np.random.default_rng(1).gamma(1.5, 60, size=300)
    means = np.random.default_rng(2).choice(values, size=(10_000, 300)).mean(1)
    found = bootstrap_mean_ci(values, "images", resamples=10_000, level=90)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [5, 95]), abs=0.5)
    assert found.level == 90


def test_bootstrap_covers_true_mean_at_its_level():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(400):
        found = bootstrap_mean_ci(100.0 * (rng.random(200) < 0.7), "items")
        covered += found.low <= 70 <= found.high
    assert 0.91 < covered / 400 < 0.985


def test_bootstrap_is_reproducible_in_any_order_and_chunks(monkeypatch):
    values = np.random.default_rng(4).normal(50, 20, size=500)
    found = bootstrap_mean_ci(values, "images")
    assert bootstrap_mean_ci(values[::-1], "images") == found
    assert bootstrap_mean_ci(values, "images", seed=1) != found
    monkeypatch.setattr(bootstrap, "_MAX_CHUNK_ELEMENTS", 37 * 500)
    assert bootstrap_mean_ci(values, "images") == found


@pytest.mark.parametrize("values", [[40.0], [30.0] * 7])
def test_bootstrap_of_equal_values_has_zero_width(values):
    found = bootstrap_mean_ci(values, "items")
    assert (found.low, found.high) == pytest.approx((values[0], values[0]))
