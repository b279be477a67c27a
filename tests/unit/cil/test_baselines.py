import pytest
import torch

from cil import (
    ConfigError,
    ConstantNoise,
    EDMSchedule,
    LogNormalNoise,
    ShuffledNoise,
    TimeNoise,
    TimeNoiseConfig,
    VideoLevelNoise,
    constant_like,
)
from cil.baselines import mean_over_time


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("a", "share"), [(5.0, 0.368), (1.0, 0.5)])
def test_the_matching_constant_of_the_toy_study(a, share):
    """The study printed .369 and .501 from draws; the quadrature is exact."""
    assert constant_like(TimeNoise(1.0, a)).value == pytest.approx(share, abs=2e-3)


def test_mean_over_time_equals_the_mean_of_draws():
    law = TimeNoise(5.0, a=3.0, mu_max=2.0)
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(200_000, generator=generator, dtype=torch.float64)
    normal = torch.randn(200_000, generator=generator, dtype=torch.float64)
    assert mean_over_time(law) == pytest.approx(float(law.sigma_cond(t, normal).mean()), rel=5e-3)


def test_constant_preset_is_a_control_of_the_given_time_noise():
    law = TimeNoiseConfig(preset="constant", beta_m=10.0, a=1.0, noise="per_frame").law()
    assert law == constant_like(TimeNoise(10.0, 1.0, noise="per_frame", time_map="rank"))
    assert law.sigma_cond(f64(0.1, 0.9), f64(-3.0, 3.0)).tolist() == pytest.approx([5.0, 5.0])


def test_shuffled_has_the_marginal_but_no_link_to_time():
    law = TimeNoise(5.0, a=2.0, mu_max=4.0)
    shuffled = ShuffledNoise(law)
    generator = torch.Generator().manual_seed(0)
    t, other, normal = (torch.rand(50_000, generator=generator) for _ in range(3))
    normal = torch.special.ndtri(normal)
    own = law.sigma_cond(t, normal)
    cut = shuffled.sigma_cond(t, normal, other_t=other)
    assert float(torch.corrcoef(torch.stack((t, own)))[0, 1]) > 0.7
    assert abs(float(torch.corrcoef(torch.stack((t, cut)))[0, 1])) < 0.02
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(
        torch.quantile(own, quantiles), torch.quantile(cut, quantiles), rtol=0.05, atol=0.02
    )
    at = f64(0.05, 1.0, 4.5)
    for value, probability in zip(at, shuffled.cdf(at, f64(0.0)), strict=True):
        assert float((cut < value).double().mean()) == pytest.approx(float(probability), abs=0.01)
    with pytest.raises(ConfigError, match=r"other_t must be given"):
        shuffled.sigma_cond(t, normal)


def test_shuffled_density_is_that_of_its_distribution():
    shuffled = ShuffledNoise(TimeNoise(5.0, a=2.0, mu_max=4.0))
    grid = torch.linspace(1e-6, 5 - 1e-6, 4001, dtype=torch.float64)
    t = f64(0.5)
    q = f64(0.02, 0.5, 0.97)
    torch.testing.assert_close(shuffled.cdf(shuffled.quantile(q, t), t), q)
    total = torch.cumulative_trapezoid(shuffled.pdf(grid, t), grid) + shuffled.cdf(grid[:1], t)
    torch.testing.assert_close(total, shuffled.cdf(grid[1:], t), rtol=0, atol=1e-4)


def test_lognormal_is_the_practice_of_svd():
    law = LogNormalNoise()
    t = f64(0.3)
    assert float(law.quantile(f64(0.5), t)) == pytest.approx(0.0498, abs=1e-4)
    q = f64(0.01, 0.6)
    torch.testing.assert_close(law.cdf(law.quantile(q, t), t), q)
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    pdf = law.pdf(grid, t)
    assert float(torch.trapezoid(pdf, grid)) == pytest.approx(1.0, abs=1e-6)
    mean = float(torch.trapezoid(pdf * grid, grid))
    assert float(law.mean(t)) == pytest.approx(mean, rel=1e-6)


def test_cdm_noises_the_condition_like_the_video():
    schedule = EDMSchedule()
    corruption = TimeNoiseConfig(preset="cdm").build(schedule)
    level = torch.tensor([0.5, 20.0])
    sigma_cond = corruption.sigma_cond(level, torch.zeros(2), level)
    assert torch.equal(sigma_cond, level)
    latents, noise = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 1, 1, 4, 4)
    s = level.reshape(2, 1, 1, 1, 1)
    expected = (latents + s * noise) / (1 + s**2).sqrt()
    torch.testing.assert_close(corruption.corrupt(latents, sigma_cond, noise), expected)
    pure = VideoLevelNoise().corrupt(latents, torch.full((2,), float("inf")), noise)
    torch.testing.assert_close(pure, noise.expand_as(pure))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstantNoise(-1.0),
        lambda: ConstantNoise(float("inf")),
        lambda: LogNormalNoise(log_std=0.0),
        lambda: LogNormalNoise(log_mean=float("nan")),
        lambda: VideoLevelNoise(target="tokens"),
    ],
)
def test_bad_parameters_are_refused(make):
    with pytest.raises(ConfigError, match=r"must be .* got"):
        make()
