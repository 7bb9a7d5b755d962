"""Do bootstrap intervals come out as theory and a plain resampling say, the same every time?"""

import numpy as np
import pytest

from multitask_vl.metrics import bootstrap
from multitask_vl.metrics.bootstrap import interval_of_mean


def test_a_share_has_the_binomial_interval():
    found = interval_of_mean([0.0] * 160 + [100.0] * 240, "questions", resamples=20_000)
    spread = 1.96 * 100 * np.sqrt(0.6 * 0.4 / 400)
    assert found.low == pytest.approx(60 - spread, abs=0.3)
    assert found.high == pytest.approx(60 + spread, abs=0.3)
    assert found.as_json() == {"interval": [found.low, found.high], "level": 95, "resampled": "questions"}


def test_it_is_what_drawing_one_by_one_gives():
    values = np.random.default_rng(1).gamma(1.5, 60, size=300)
    drawn = np.random.default_rng(2).choice(values, size=(20_000, 300)).mean(1)
    found = interval_of_mean(values, "images", resamples=20_000, level=90)
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [5, 95]), abs=0.5)
    assert found.level == 90


def test_it_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(400):
        found = interval_of_mean(100.0 * (rng.random(200) < 0.7), "items")
        covered += found.low <= 70 <= found.high
    assert 0.91 < covered / 400 < 0.985


def test_the_same_seed_gives_the_same_in_any_order_and_in_pieces(monkeypatch):
    values = np.random.default_rng(4).normal(50, 20, size=500)
    found = interval_of_mean(values, "images")
    assert interval_of_mean(values[::-1], "images") == found
    assert interval_of_mean(values, "images", seed=1) != found
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", 37 * 500)
    assert interval_of_mean(values, "images") == found


@pytest.mark.parametrize("values", [[40.0], [30.0] * 7])
def test_where_nothing_differs_it_has_no_width(values):
    found = interval_of_mean(values, "items")
    assert (found.low, found.high) == pytest.approx((values[0], values[0]))
