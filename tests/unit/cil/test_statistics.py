"""Distribution of sigma_cond and of the noise, from the random numbers that training draws.

Each check is a function of the thing under test, and each is also given planted errors that it must
find; the docstrings say which.
"""

import numpy as np
import pytest
import torch
from scipy import special, stats

from cil import EDMSchedule, Stream, TimeNoise, TimeNoiseConfig, VPSchedule, rng
from cil.conditioning import corrupt_latents, noise_shape
from cil.time_noise import Corruption

EDM = EDMSchedule(p_mean=0.7, p_std=1.6)
VP = VPSchedule()
TIMES = np.linspace(0.025, 0.975, 20)
DRAWS = 4000


def logit_normal(beta_m, a, mu_max):
    """Distribution function at time t, written from the paper and not with cil."""

    def cdf(values, t):
        mean = mu_max * (2.0 * t**a - 1.0)
        return special.ndtr(np.log(values / (beta_m - values)) - mean)

    return cdf


def marginal(cdf, beta_m):
    grid = beta_m * special.expit(np.linspace(-9.0, 9.0, 2001))
    times = (np.arange(400) + 0.5) / 400
    mixed = np.mean([cdf(grid, time) for time in times], axis=0)
    return lambda values, t: np.interp(values, grid, mixed)


def log_normal(mean, std):
    return lambda values, t: special.ndtr((np.log(values) - mean) / std)


# preset -> (schedule, level of time t, distribution function)
CASES = {
    "mild": (EDM, "rank", logit_normal(5.0, 5.0, 1.0)),
    "paper-svd-fixed": (EDM, "rank", logit_normal(15.0, 5.0, 1.0)),
    "paper-svd": (EDM, "sigma", logit_normal(15.0, 5.0, 1.0)),
    "paper-dynamicrafter": (VP, "index", logit_normal(100.0, 5.0, 1.0)),
    "paper-videocrafter": (VP, "index", logit_normal(100.0, 5.0, 4.0)),
    "lognormal": (EDM, "rank", log_normal(-3.0, 0.5)),
    "paper-svd-baseline": (EDM, "rank", log_normal(-1.2, 1.2)),
    "shuffled": (EDM, "rank", marginal(logit_normal(5.0, 5.0, 1.0), 5.0)),
}


def level_of(schedule, kind, t):
    if kind == "rank":
        return float(schedule.sigma_at(torch.tensor(t, dtype=torch.float64)))
    return 700.0 * t if kind == "sigma" else round(1000 * t)


def quantiles(corruption, kind, cdf):
    """(times, draws): distribution function at the draws, uniform if all is right."""
    rows = []
    for step, t in enumerate(TIMES):
        kwargs = {"seed": 3, "sample_ids": range(DRAWS), "step": step}
        level = level_of(corruption.schedule, kind, t)
        dtype = torch.int64 if kind == "index" else torch.float64
        draws = corruption.sigma_cond(
            torch.full((DRAWS,), level, dtype=dtype),
            rng.normal((), stream=Stream.SIGMA_COND, **kwargs).double(),
            corruption.schedule.level(rng.uniform((), stream=Stream.SHUFFLED_TIME, **kwargs)),
        )
        rows.append(cdf(draws.numpy(), t))
    return np.stack(rows)


def worst_p(rows):
    each = min(stats.kstest(row, "uniform").pvalue for row in rows)
    return each, stats.kstest(rows.ravel(), "uniform").pvalue


@pytest.mark.parametrize("preset", CASES)
def test_sigma_cond_has_its_closed_form_distribution(preset):
    """Kolmogorov-Smirnov at 20 times, and pooled. Finds the errors planted in the next test."""
    schedule, kind, cdf = CASES[preset]
    corruption = TimeNoiseConfig(preset=preset).build(schedule)
    each, pooled = worst_p(quantiles(corruption, kind, cdf))
    assert each > 1e-4
    assert pooled > 1e-3


class Planted(TimeNoise):
    __slots__ = ()

    def mu(self, t):
        return self.mu_max * (t**self.a - 1.0)


class Reversed(TimeNoise):
    __slots__ = ()

    def sigma_cond(self, t, normal, *, other_t=None):
        return TimeNoise.sigma_cond(self, 1.0 - t, normal)


class NotNormal(TimeNoise):
    __slots__ = ()

    def sigma_cond(self, t, normal, *, other_t=None):
        return TimeNoise.sigma_cond(self, t, 12**0.5 * (torch.special.ndtr(normal) - 0.5))


@pytest.mark.parametrize(
    "law",
    [
        TimeNoise(5.0, time_map="rank", scale=1.05),
        TimeNoise(5.0, a=4.5, time_map="rank"),
        TimeNoise(5.0, mu_max=1.1, time_map="rank"),
        TimeNoise(4.9, time_map="rank"),
        TimeNoise(5.0, time_map="sigma"),
        Planted(5.0, time_map="rank"),
        Reversed(5.0, time_map="rank"),
        NotNormal(5.0, time_map="rank"),
    ],
    ids=["scale", "exponent", "mu_max", "beta_m", "time map", "factor 2", "1 - t", "uniform"],
)
def test_planted_errors_in_sigma_cond_are_found(law):
    """Scale 5 % off, a 10 % off, mu_max 10 % off, beta_m 2 % off, t from sigma / 700, mu without
    its factor 2, time reversed, a uniform number of unit variance instead of a normal one."""
    _, kind, cdf = CASES["mild"]
    each, pooled = worst_p(quantiles(Corruption(law, EDM), kind, cdf))
    assert min(each, pooled) < 1e-5


@pytest.mark.parametrize("preset", ["none", "constant", "cdm"])
def test_presets_without_spread_give_one_value(preset):
    corruption = TimeNoiseConfig(preset=preset).build(EDM)
    for t in TIMES:
        level = torch.full((8,), level_of(EDM, "rank", t), dtype=torch.float64)
        got = corruption.sigma_cond(level, torch.randn(8, dtype=torch.float64), level)
        expected = {"none": 0.0, "constant": 1.8405786, "cdm": float(level[0])}[preset]
        assert got.tolist() == pytest.approx([expected] * 8, rel=1e-7)


SHAPE = (4, 3, 8, 8)


def draw_noise(mode, stream=Stream.COND_NOISE, step=0, ids=range(256)):
    return rng.normal(noise_shape(mode, SHAPE), seed=11, sample_ids=ids, stream=stream, step=step)


def added_noise(mode, **kwargs):
    """What lands on conditioning latents with sigma_cond 1."""
    noise = draw_noise(mode, **kwargs)
    return corrupt_latents(torch.zeros(len(noise), *SHAPE), torch.ones(len(noise)), noise, mode)


def moments_are_normal(values):
    """Mean, variance, skewness, kurtosis within 5 standard errors, and Kolmogorov-Smirnov."""
    x = values.double().flatten().numpy()
    n = len(x)
    z = np.array(
        [
            x.mean() * n**0.5,
            (x.var() - 1.0) * (n / 2) ** 0.5,
            stats.skew(x) * (n / 6) ** 0.5,
            stats.kurtosis(x) * (n / 24) ** 0.5,
        ]
    )
    return bool((np.abs(z) < 5).all()) and stats.kstest(x, "norm").pvalue > 1e-4


@pytest.mark.parametrize("mode", ["shared", "per_frame"])
def test_noise_is_standard_normal(mode):
    """Finds: a scale of 1.03, a shift of 0.03, and a uniform number in place of the normal one."""
    noise = draw_noise(mode)
    assert moments_are_normal(noise)
    assert not moments_are_normal(noise * 1.03)
    assert not moments_are_normal(noise + 0.03)
    assert not moments_are_normal(12**0.5 * (torch.special.ndtr(noise) - 0.5))


def test_scalar_noise_is_standard_normal_over_clips():
    """Finds: sample ids that repeat, as if clips were numbered within a worker."""
    noise = draw_noise("scalar", ids=range(20_000))
    assert moments_are_normal(noise)
    assert not moments_are_normal(noise[:50].repeat(400, 1, 1, 1, 1))


def correlation(a, b):
    """Correlation in standard errors."""
    a, b = a.double().flatten(), b.double().flatten()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()) * len(a) ** 0.5


def frames_are_independent(values):
    pairs = [(i, j) for i in range(4) for j in range(i)]
    return all(abs(correlation(values[:, i], values[:, j])) < 5 for i, j in pairs)


def test_per_frame_noise_is_independent_and_shared_noise_equal():
    """Finds: shared noise where per_frame is asked for, and the other way round."""
    per_frame, shared, scalar = (added_noise(mode) for mode in ("per_frame", "shared", "scalar"))
    assert frames_are_independent(per_frame)
    assert not frames_are_independent(shared)
    assert all(torch.equal(shared[:, 0], shared[:, frame]) for frame in range(4))
    assert not torch.equal(per_frame[:, 0], per_frame[:, 1])
    assert torch.equal(scalar, scalar[:, :1, :1, :1, :1].expand_as(scalar))
    assert moments_are_normal(shared[:, 2])


def test_noise_of_other_clips_streams_steps_and_positions_is_independent():
    """Finds: one stream for video and condition, a step or sample id left out of the counter, and
    a generator that starts again after some elements."""
    noise = draw_noise("per_frame")
    video = draw_noise("per_frame", stream=Stream.VIDEO_NOISE)
    later = draw_noise("per_frame", step=1)
    assert abs(correlation(noise, video)) < 5
    assert abs(correlation(noise, later)) < 5
    assert abs(correlation(noise[:-1], noise[1:])) < 5
    flat = noise.flatten(1)
    for lag in (1, 2, 3, 4, 8, 64, 192):
        assert abs(correlation(flat[:, lag:], flat[:, :-lag])) < 5, lag
    assert abs(correlation(noise.square() - 1, video.square() - 1)) < 5
    assert flat.unique().numel() > 0.99 * flat.numel()
    assert abs(correlation(noise, noise)) > 5
    assert abs(correlation(noise, 0.1 * noise + video)) > 5
    repeated = flat[:, :64].repeat(1, 12)
    assert abs(correlation(repeated[:, 64:], repeated[:, :-64])) > 5
