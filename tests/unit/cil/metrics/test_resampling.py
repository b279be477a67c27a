import math

import numpy as np
import pytest
from scipy import stats

from cil.errors import ConfigError, DataError
from cil.metrics.measured import measure_mean
from cil.metrics.measurement import Measurement, check_comparable
from cil.metrics.resampling import (
    bootstrap_interval,
    jackknife_interval,
    paired_difference,
    ratio_of_sums,
    sign_test,
)


def values(count=80, seed=0, centre=0.0):
    return np.random.default_rng(seed).normal(centre, 1.0, count)


def test_an_interval_of_a_mean_is_as_wide_as_its_standard_error_says():
    sample = values(200)
    interval = bootstrap_interval(sample, seed=1)
    assert interval.value == pytest.approx(sample.mean())
    half = 1.96 * sample.std(ddof=1) / math.sqrt(200)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    assert (interval.n, interval.seed, interval.level) == (200, 1, 0.95)
    narrow = bootstrap_interval(sample, seed=1, level=0.5)
    assert narrow.high - narrow.low < 0.5 * (interval.high - interval.low)


def test_intervals_cover():
    covered = sum(
        item.low <= 0 <= item.high
        for item in (bootstrap_interval(values(40, k), seed=k, num=300) for k in range(200))
    )
    assert 175 <= covered <= 198


def test_a_seed_repeats_and_chunks_do_not_show(monkeypatch):
    one = bootstrap_interval(values(), seed=5)
    assert bootstrap_interval(values(), seed=5) == one
    assert bootstrap_interval(values(), seed=6) != one
    monkeypatch.setattr("cil.metrics.resampling._CHUNK", 1000)
    assert bootstrap_interval(values(), seed=5) == one


def test_any_statistic_is_resampled_as_the_mean_is():
    plain = bootstrap_interval(values(), seed=5, num=500)
    own = bootstrap_interval(values(), lambda x: float(x.mean()), seed=5, num=500)
    assert (own.low, own.high) == pytest.approx((plain.low, plain.high))


def test_rows_that_belong_together_are_resampled_together():
    bottom = np.random.default_rng(0).uniform(1, 100, 50)
    interval = bootstrap_interval((3 * bottom, bottom), ratio_of_sums, seed=0, num=200)
    assert (interval.low, interval.value, interval.high) == pytest.approx((3, 3, 3))


def test_seeds_of_one_clip_do_not_count_as_clips():
    clips = values(30)
    rows, labels = np.repeat(clips, 10), np.repeat([f"clip-{k}" for k in range(30)], 10)
    naive = bootstrap_interval(rows, seed=0)
    grouped = bootstrap_interval(rows, seed=0, groups=labels)
    alone = bootstrap_interval(clips, seed=0)
    assert (naive.n, grouped.n) == (300, 30)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert grouped.high - grouped.low > 2 * (naive.high - naive.low)
    mixed = np.random.default_rng(1).permutation(300)
    again = bootstrap_interval(rows[mixed], seed=0, groups=labels[mixed])
    assert again.high - again.low == pytest.approx(grouped.high - grouped.low, rel=0.2)


def test_one_clip_has_no_interval():
    interval = bootstrap_interval([2.0], seed=0)
    assert (interval.value, interval.low, interval.high) == (2.0, None, None)
    assert interval.reason == "one clip has no spread"
    assert bootstrap_interval([1.0, 2.0], seed=0, groups=["a", "a"]).low is None


def test_a_ratio_that_may_divide_by_0_has_no_interval():
    interval = bootstrap_interval(([1.0, 0.0], [2.0, 0.0]), ratio_of_sums, seed=0)
    assert interval.value == 0.5
    assert "no value in some resamples" in interval.reason
    with pytest.raises(DataError, match="denominator 0"):
        bootstrap_interval(([1.0, 2.0], [0.0, 0.0]), ratio_of_sums, seed=0)


@pytest.mark.parametrize(
    ("given", "options", "complaint"),
    [
        ([], {}, "no rows"),
        ([1.0, math.nan], {}, "finite"),
        (([1.0, 2.0], [1.0]), {}, "as many"),
        ([1.0, 2.0], {"num": 5}, "num must be"),
        ([1.0, 2.0], {"level": 1.0}, "level"),
        ([1.0, 2.0], {"groups": ["a"]}, "groups must name 2 rows"),
    ],
)
def test_what_cannot_be_resampled_is_refused(given, options, complaint):
    with pytest.raises(DataError, match=complaint):
        bootstrap_interval(given, seed=0, **options)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    sample = values(100)
    interval = jackknife_interval(sample, lambda x: float(x.mean()), num_parts=100)
    half = stats.norm.ppf(0.975) * sample.std(ddof=1) / 10
    assert interval.high - interval.value == pytest.approx(half, rel=1e-9)
    assert interval.value - interval.low == pytest.approx(half, rel=1e-9)
    with pytest.raises(DataError, match="at least 2"):
        jackknife_interval([1.0], lambda x: 1.0)


@pytest.mark.parametrize(("positive", "negative"), [(0, 0), (5, 0), (3, 9), (20, 20), (900, 1100)])
def test_the_sign_test_is_the_binomial_test(positive, negative):
    count = positive + negative
    truth = stats.binomtest(positive, count).pvalue if count else 1.0
    assert sign_test(positive, negative) == pytest.approx(truth, rel=1e-9)


def test_a_paired_difference_sees_what_clips_hide():
    clips = values(60, centre=10) * 5
    arm = clips + 0.3 + 0.1 * values(60, seed=2)
    found = paired_difference(arm, clips, seed=0)
    assert found.mean == pytest.approx(0.3, abs=0.05)
    assert 0 < found.low < found.mean < found.high
    assert (found.n, found.num_positive) == (60, 60)
    assert found.p == pytest.approx(2 / 2**60)
    back = paired_difference(clips, arm, seed=0)
    assert (back.mean, back.num_negative) == (pytest.approx(-found.mean), 60)


def test_ties_and_seeds_of_one_clip_in_a_paired_difference():
    found = paired_difference([1.0, 2.0, 3.0, 9.0], [1.0, 1.0, 1.0, 10.0], seed=0)
    assert (found.num_positive, found.num_negative, found.p) == (2, 1, 1.0)
    grouped = paired_difference(
        [1.0, 2.0, 3.0, 9.0], [1.0, 1.0, 1.0, 10.0], seed=0, groups=["a", "a", "b", "b"]
    )
    assert (grouped.n, grouped.num_positive, grouped.num_negative) == (2, 2, 0)
    same = paired_difference([1.0, 2.0], [1.0, 2.0], seed=0)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    with pytest.raises(DataError, match="as many"):
        paired_difference([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(DataError, match="must be"):
        paired_difference([[1.0]], [[2.0]], seed=0)


def test_a_measurement_goes_through_json():
    made = measure_mean(values(), seed=3, preprocessing="none").warned("look")
    assert Measurement.from_dict(made.as_dict()) == made
    assert made.as_dict()["warnings"] == ["look"]
    assert (made.seed, made.n, made.preprocessing) == (3, 80, "none")
    with pytest.raises(DataError, match="has no"):
        Measurement.from_dict({"value": 1.0, "colour": "red"})


def test_absent_is_not_zero():
    absent = Measurement.missing("no i3d file was given", seed=1)
    assert (absent.value, absent.low, absent.absent) == (None, None, "no i3d file was given")
    assert Measurement.from_dict(absent.as_dict()) == absent
    with pytest.raises(ConfigError, match="value or a reason"):
        Measurement()
    with pytest.raises(ConfigError, match="value or a reason"):
        Measurement(value=0.0, absent="no file")
    for broken in ({"value": math.nan}, {"value": 1.0, "high": math.inf}):
        with pytest.raises(DataError, match="must be finite"):
            Measurement(**broken)


def test_the_reason_for_no_interval_becomes_a_warning():
    assert measure_mean([1.0], seed=0).warnings == ("no interval: one clip has no spread",)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"n": 99}, "n differs"),
        ({"ddof": 1}, "ddof differs"),
        ({"extractor_sha256": "cd"}, "extractor_sha256 differs"),
        ({"preprocessing": "other"}, "preprocessing differs"),
        ({"value": None, "absent": "no file"}, "it is absent in an arm"),
    ],
)
def test_distances_that_were_not_measured_alike_are_not_compared(change, complaint):
    given = {"value": 1.0, "n": 100, "ddof": 0, "extractor_sha256": "ab", "preprocessing": "p"}
    first = Measurement(**given)
    check_comparable("fvd", first, Measurement(**given))
    with pytest.raises(DataError, match=complaint):
        check_comparable("fvd", first, Measurement(**{**given, **change}))
