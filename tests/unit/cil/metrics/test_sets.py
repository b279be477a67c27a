"""Features, Fréchet and kernel distance, Inception Score, and the measurements made from them."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from cil.errors import DataError
from cil.metrics.features import FeatureStatistics
from cil.metrics.frechet import fit_line, frechet_distance, frechet_infinity
from cil.metrics.inception import inception_score
from cil.metrics.kernel import kernel_distance
from cil.metrics.measured import (
    measure_frechet,
    measure_frechet_infinity,
    measure_inception,
    measure_kernel,
)


def rows(count, width, seed=0, shift=0.0):
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width))
    return generator.normal(size=(count, width)) @ mixing + shift


def by_square_root(real, fake, ddof):
    one, other = (np.cov(x.T, ddof=ddof) for x in (real, fake))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(one @ other)
    gap = real.mean(axis=0) - fake.mean(axis=0)
    return gap @ gap + np.trace(one + other - 2 * np.real(root))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("count", "other"), [(60, 60), (200, 31), (11, 400)])
def test_frechet_agrees_with_the_matrix_square_root(count, other, ddof):
    real, fake = rows(count, 9), rows(other, 9, seed=1, shift=0.3)
    truth = by_square_root(real, fake, ddof)
    assert frechet_distance(real, fake, ddof=ddof) == pytest.approx(truth, rel=1e-9)
    merged = [FeatureStatistics().update(x) for x in (real, fake)]
    assert frechet_distance(*merged, ddof=ddof) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance(real, merged[1], ddof=ddof) == pytest.approx(truth, rel=1e-9)


def test_frechet_of_gaussians_on_a_line():
    real, fake = np.array([[0.0], [2.0]]), np.array([[5.0], [11.0]])
    assert frechet_distance(real, fake) == pytest.approx((8 - 1) ** 2 + (3 - 1) ** 2)


def test_frechet_does_not_depend_on_order_or_on_a_common_shift():
    real, fake = rows(50, 7), rows(40, 7, seed=1)
    value = frechet_distance(real, fake)
    assert frechet_distance(fake, real) == pytest.approx(value, rel=1e-12)
    assert frechet_distance(real[::-1] + 1e4, fake + 1e4) == pytest.approx(value, rel=1e-6)
    assert frechet_distance(real, real[::-1]) == pytest.approx(0, abs=1e-9)


def test_torch_features_of_any_dtype_are_taken():
    real = torch.from_numpy(rows(20, 3)).bfloat16().requires_grad_()
    fake = torch.from_numpy(rows(20, 3, seed=1))
    truth = frechet_distance(real.detach().double().numpy(), fake.numpy())
    assert frechet_distance(real, fake) == truth


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.randoms())
def test_statistics_do_not_depend_on_the_sharding(sizes, random):
    whole = rows(sum(sizes) + 2, 4, shift=100.0)
    cuts = np.cumsum([0, *sizes])
    parts = [whole[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]
    shards = [FeatureStatistics().update(part) for part in parts]
    random.shuffle(shards)
    total = FeatureStatistics()
    for shard in shards:
        total.merge(FeatureStatistics.from_state_dict(shard.state_dict()))
    assert total.count == len(whole)
    np.testing.assert_allclose(total.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance(1), np.cov(whole.T), rtol=1e-9, atol=1e-12)


def test_statistics_that_are_merged_stay_as_they_are():
    part = FeatureStatistics().update(rows(5, 3))
    before = part.covariance(0)
    total = FeatureStatistics().merge(part).update(rows(4, 3, seed=1))
    part.merge(FeatureStatistics())
    assert (part.count, total.count, total.width, FeatureStatistics().width) == (5, 9, 3, 0)
    np.testing.assert_array_equal(part.covariance(0), before)


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({}, "need the arrays"),
        ({"count": 3, "mean": [1.0]}, "need the arrays"),
        ({"count": 3, "mean": [1.0, 2.0], "m2": [[1.0]]}, "must be 2 x 2"),
        ({"count": 3, "mean": [math.nan], "m2": [[1.0]]}, "finite"),
    ],
)
def test_a_broken_state_is_refused(state, complaint):
    with pytest.raises(DataError, match=complaint):
        FeatureStatistics.from_state_dict(state)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
def test_values_that_are_not_finite_are_refused(measure, broken):
    real = rows(10, 3)
    real[4, 1] = broken
    with pytest.raises(DataError, match=r"NaN or Inf in 1 of 10 rows, first in row 4"):
        measure(real, rows(10, 3))
    with pytest.raises(DataError, match="NaN or Inf"):
        measure(rows(10, 3), real)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("real", "fake", "complaint"),
    [
        (rows(1, 3), rows(9, 3), "at least 2 clips"),
        (rows(9, 3), rows(1, 3), "at least 2 clips"),
        (rows(9, 3), rows(9, 4), "one extractor"),
        (rows(9, 3)[0], rows(9, 3), r"must be \(N, D\)"),
        (np.zeros((4, 0)), rows(9, 3), r"must be \(N, D\)"),
    ],
)
def test_sets_that_have_no_distance_are_refused(measure, real, fake, complaint):
    with pytest.raises(DataError, match=complaint):
        measure(real, fake)


def test_statistics_refuse_what_they_cannot_hold():
    with pytest.raises(DataError, match="0 rows"):
        assert FeatureStatistics().mean is None
    with pytest.raises(DataError, match="at least 2 clips, got 0"):
        FeatureStatistics().covariance(0)
    with pytest.raises(DataError, match="ddof must be 0"):
        FeatureStatistics().update(rows(5, 2)).covariance(2)
    with pytest.raises(DataError, match="3 columns"):
        FeatureStatistics().update(rows(5, 3)).update(rows(5, 2))
    one = FeatureStatistics().update(rows(1, 3))
    with pytest.raises(DataError, match="at least 2 clips"):
        frechet_distance(one, rows(9, 3))


@pytest.mark.parametrize("unbiased", [True, False])
def test_kernel_distance_by_its_definition(unbiased):
    real, fake = rows(7, 3), rows(5, 3, seed=1)

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def within(values):
        pairs = [
            kernel(a, b)
            for i, a in enumerate(values)
            for j, b in enumerate(values)
            if not (unbiased and i == j)
        ]
        return np.mean(pairs)

    across = np.mean([kernel(a, b) for a in real for b in fake])
    truth = within(real) + within(fake) - 2 * across
    assert kernel_distance(real, fake, unbiased=unbiased) == pytest.approx(truth, rel=1e-10)


def test_kernel_distance_of_one_law_is_0_on_average():
    values = [kernel_distance(rows(40, 4, seed=k), rows(40, 4, seed=k + 500)) for k in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(60)
    biased = [
        kernel_distance(rows(40, 4, seed=k), rows(40, 4, seed=k + 500), unbiased=False)
        for k in range(60)
    ]
    assert np.mean(biased) > 5 * np.std(biased) / math.sqrt(60)


def test_kernel_blocks_do_not_show(monkeypatch):
    real, fake = rows(50, 4), rows(45, 4, seed=1)
    whole = kernel_distance(real, fake)
    monkeypatch.setattr("cil.metrics.kernel._BLOCK", 7)
    assert kernel_distance(real, fake) == pytest.approx(whole, rel=1e-10)


def test_extrapolation_takes_the_bias_of_few_clips_away():
    real, fake = rows(400, 16), rows(400, 16, seed=1)
    line = frechet_infinity(real, fake, seed=3)
    plain = frechet_distance(real, fake)
    assert line.slope > 0
    assert abs(line.intercept) < 0.2 * plain
    assert frechet_infinity(real, fake, seed=3) == line
    assert frechet_infinity(real, fake, seed=4) != line
    assert min(line.sizes) == 100
    assert line.values[-1] == pytest.approx(plain, rel=1e-9)


def test_a_line_is_fitted_exactly():
    assert fit_line([10, 20, 40], [2 + 3 / n for n in (10, 20, 40)]) == pytest.approx((2, 3))
    with pytest.raises(DataError, match="two sizes"):
        fit_line([10, 10], [1.0, 2.0])
    with pytest.raises(DataError, match="at least 16 clips"):
        frechet_infinity(rows(15, 2), rows(40, 2), seed=0)


def test_inception_score_of_certain_and_of_ignorant_classifiers():
    certain = 1e4 * np.eye(8)[np.arange(64) % 8]
    assert inception_score(certain, splits=4).value == pytest.approx(8)
    assert inception_score(np.zeros((64, 8)), splits=4).value == pytest.approx(1)
    assert inception_score(np.eye(8)[[3] * 64], splits=4).value == pytest.approx(1)


@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_logits_and_their_probabilities_score_alike(scale):
    logits = scale * np.random.default_rng(0).normal(size=(95, 11))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert (p == 0).any() == (scale == 3000.0)
    one, other = inception_score(logits), inception_score(p, probabilities=True)
    assert one.per_split == pytest.approx(other.per_split, rel=1e-9)
    assert len(one.per_split) == 10


def test_a_class_that_no_clip_has_counts_nothing():
    p = np.zeros((20, 5))
    p[:10, 0] = p[10:, 1] = 1
    assert inception_score(p, splits=1, probabilities=True).value == pytest.approx(2)


def test_a_shuffle_is_told_by_its_seed():
    logits = np.sort(np.random.default_rng(0).normal(size=(100, 5)) * 4, axis=0)
    assert inception_score(logits, seed=1) == inception_score(logits, seed=1)
    assert inception_score(logits, seed=1).value > inception_score(logits).value
    assert inception_score(logits, splits=1, seed=1).value == pytest.approx(
        inception_score(logits, splits=1).value
    )
    assert inception_score(logits, splits=1).std_ddof1 is None


@pytest.mark.parametrize(
    ("scores", "options", "complaint"),
    [
        (np.zeros((9, 3)), {}, "from 1 to the 9 clips, got 10"),
        (np.full((20, 3), np.nan), {}, "NaN or Inf"),
        (np.full((20, 3), -np.inf), {}, "NaN or Inf"),
        (np.ones((20, 3)), {"probabilities": True}, "may be logits"),
        (np.array([[1.5, -0.5]] * 20), {"probabilities": True}, "may be logits"),
    ],
)
def test_scores_without_an_inception_score_are_refused(scores, options, complaint):
    with pytest.raises(DataError, match=complaint):
        inception_score(scores, **options)


def test_a_measured_distance_says_what_to_know():
    few = measure_frechet(rows(40, 30), rows(35, 30, seed=1), extractor_sha256="ab" * 32)
    assert few.value == frechet_distance(rows(40, 30), rows(35, 30, seed=1))
    assert (few.n, few.ddof, few.level, few.extractor_sha256) == (35, 0, 0.95, "ab" * 32)
    assert few.low < few.value < few.high
    assert "40 real clips for 30 features" in few.warnings[0]
    assert "35 generated clips for 30 features" in few.warnings[1]
    assert few.warnings[2] == "40 real and 35 generated clips"
    assert measure_frechet(rows(60, 30), rows(60, 30, seed=1), ddof=1).warnings == ()


def test_an_interval_of_a_distance_covers_its_mean():
    """Distances of 60 clips have a mean; intervals of 95 % should mostly hold it."""
    found = [measure_frechet(rows(60, 4, k), rows(60, 4, k + 999, shift=0.5)) for k in range(60)]
    centre = np.mean([item.value for item in found])
    covered = sum(item.low <= centre <= item.high for item in found)
    assert covered >= 50
    widths = [(item.high - item.low) / 2 / 1.96 for item in found]
    assert np.mean(widths) == pytest.approx(np.std([item.value for item in found]), rel=0.35)


def test_other_measurements():
    real, fake = rows(60, 3), rows(60, 3, seed=1)
    kernel = measure_kernel(real, fake)
    assert kernel.value == pytest.approx(kernel_distance(real, fake))
    assert (kernel.low < kernel.value < kernel.high, kernel.ddof) == (True, None)
    infinity = measure_frechet_infinity(real, fake, seed=5)
    assert (infinity.seed, infinity.low, infinity.n) == (5, None, 60)
    assert measure_frechet_infinity(rows(9, 3), fake, seed=5).value is None
    assert "no interval" in measure_kernel(real[:3], fake).warnings[0]
    assert measure_frechet(real[:3], fake).low is None
    score = measure_inception(fake, seed=2)
    assert (score.n, score.ddof, score.seed) == (60, 0, 2)
    assert "from 60 clips in 10 splits" in score.warnings[0]
    assert score.high - score.value == pytest.approx(inception_score(fake, seed=2).std_ddof0)
