"""Intervals of shares and medians."""

import numpy as np
import pytest

from rlt_ros.core.intervals import median_interval, wilson


def test_share_of_few_episodes_is_hardly_known():
    low, high = wilson(5, 10)
    assert (round(low, 3), round(high, 3)) == (0.237, 0.763)  # of tables
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == 1.0 and wilson(10, 10)[0] == pytest.approx(0.722, abs=1e-3)


def test_median_interval_holds_the_median_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = median_interval(list(random.exponential(size=21)))
        held += low <= np.log(2) <= high
    assert 0.94 < held / 2000 < 0.985


def test_median_of_few_values_is_between_the_least_and_the_largest():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([4.0]) == (4.0, 4.0)
    assert median_interval(list(range(1, 7))) == (1.0, 6.0)
    assert median_interval(list(range(1, 11))) == (2.0, 9.0)  # as tables of the sign test say
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
