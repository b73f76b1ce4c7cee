"""Bootstrap intervals against scipy's bootstrap and against their own coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from flashbulb.distill.metrics.bootstrap import (
    Interval,
    interval,
    resample,
    resampled_mean,
    spread,
)


def of_mean(values, counts):
    return interval(float(np.mean(values)), resampled_mean(values, counts))


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).exponential(size=200)
    found = of_mean(values, resample(200, 20_000, 0))
    options = {"method": "percentile", "n_resamples": 20_000, "rng": np.random.default_rng(1)}
    expected = stats.bootstrap((values,), np.mean, **options).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], rel=0.01)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    counts = resample(100, 400, 3)
    found = [of_mean(rng.standard_normal(100), counts) for _ in range(400)]
    assert np.mean([i.low <= 0 <= i.high for i in found]) == pytest.approx(0.94, abs=0.03)


def test_pairing_removes_what_two_checkpoints_share():
    """Prompts differ much more than the checkpoints do: only the paired interval sees the difference."""
    rng = np.random.default_rng(4)
    prompts = rng.standard_normal(100) * 10
    first, second = prompts + rng.standard_normal(100) * 0.1 + 0.2, prompts
    counts = resample(100, 500, 5)
    assert of_mean(first - second, counts).excludes_zero
    unpaired = of_mean(first, counts), of_mean(second, resample(100, 500, 6))
    assert unpaired[0].low < unpaired[1].high


def test_seeds_of_a_prompt_go_together():
    """Two equal seeds hold no more knowledge than one."""
    values = np.random.default_rng(7).standard_normal(50)
    counts = resample(50, 300, 8)
    both, one = of_mean(np.stack([values, values]), counts), of_mean(values, counts)
    assert [both.low, both.high] == pytest.approx([one.low, one.high])


def test_a_statistic_that_resampling_biases_keeps_its_value_inside():
    """The number of distinct values falls by a third in every resample; its interval is moved back."""
    counts = resample(100, 500, 9)
    found = interval(100.0, (counts > 0).sum(1).astype(float))
    assert found.low < 100 < found.high
    assert (
        10 < found.high - found.low < 20
    )  # four standard deviations of the count of distinct ones, 3.1 each


def test_resamples_are_seeded_and_sum_to_n():
    first, again, other = resample(20, 50, 1), resample(20, 50, 1), resample(20, 50, 2)
    assert (first == again).all()
    assert (first != other).any()
    assert (first.sum(1) == 20).all()
    with pytest.raises(ValueError, match="at least two prompts"):
        resample(1, 10, 0)


def test_the_spread_is_over_seeds():
    assert spread([1.0]) is None
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert Interval(value=1, low=-1, high=2).excludes_zero is False
