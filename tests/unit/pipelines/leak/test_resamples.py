"""Intervals against those of the library, and against what they must be by their definition."""

import numpy as np
import pytest

from cil.errors import DataError
from cil.metrics.resampling import bootstrap_interval, ratio_of_sums
from pipelines.leak.resamples import ClipResamples, mean_of, sign_test_of


@pytest.fixture
def numbers():
    generator = np.random.default_rng(3)
    bottom = generator.uniform(0.5, 2.0, 30)
    return bottom * generator.normal(0.4, 0.2, 30), bottom


def test_a_ratio_has_the_interval_of_the_library(numbers):
    """The same clips are drawn, so the ends agree to the last digits, computed another way."""
    found = ClipResamples(30, seed=11, num=500).ratio(*numbers).estimate(0.9)
    expected = bootstrap_interval(numbers, ratio_of_sums, seed=11, num=500, level=0.9)
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high), rel=1e-12
    )
    assert found.n == expected.n == 30


def test_a_difference_is_paired(numbers):
    """Two arms that differ by a constant on every clip differ without any doubt."""
    top, bottom = numbers
    clips = ClipResamples(30, seed=0, num=200)
    gap = clips.ratio(top + 0.1 * bottom, bottom) - clips.ratio(top, bottom)
    found = gap.estimate(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.sign == 1


def test_shares_and_means_of_quantities(numbers):
    top, bottom = numbers
    clips = ClipResamples(30, seed=0, num=200)
    base = clips.ratio(top, bottom)
    gain, half = (
        clips.ratio(top + bottom, bottom) - base,
        clips.ratio(top + bottom / 2, bottom) - base,
    )
    share = (half / gain).estimate(0.95)
    assert (share.value, share.low, share.high) == pytest.approx((0.5, 0.5, 0.5))
    middle = mean_of([base, clips.ratio(top + bottom, bottom)])
    assert middle.point == pytest.approx(base.point + 0.5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for number in range(200):
        values = generator.normal(1.0, 1.0, 40)
        found = ClipResamples(40, seed=number, num=300).mean(values).estimate(0.9)
        hits += found.low <= 1.0 <= found.high
    assert 0.82 <= hits / 200 <= 0.96


def test_one_clip_has_no_interval_and_a_still_one_no_value():
    single = ClipResamples(1, seed=0, num=100).ratio(np.array([1.0]), np.array([2.0]))
    assert single.estimate(0.95).value == 0.5
    assert single.estimate(0.95).low is None
    assert single.estimate(0.95).sign == 0
    still = ClipResamples(2, seed=0, num=100).ratio(np.zeros(2), np.zeros(2))
    assert still.estimate(0.95).value is None


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="1 not finite"):
        ClipResamples(2, seed=0, num=10).mean(np.array([1.0, np.nan]))


def test_signs():
    assert sign_test_of(np.array([1.0, 1, 1, 1, 1, 0])) == pytest.approx(2 / 32)
    assert sign_test_of(np.array([1.0, -1])) == 1.0
    assert sign_test_of(np.zeros(3)) is None
