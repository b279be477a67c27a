import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cil import AnalyticInit, DataError, LatentMoments, gaussian_kl, kl_curve, marginal_kl

SHAPE = (1, 1, 2, 3)


def clips(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 2.0, 6, dtype=torch.float64).reshape(SHAPE)
    return 1.0 + scale * torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)


def moments(latents):
    return LatentMoments().update(latents)


def test_gaussian_kl_agrees_with_torch():
    p, q = AnalyticInit.from_moments(moments(clips(9))), AnalyticInit(torch.zeros(SHAPE), 0.7)
    alpha, sigma = 0.3, 0.9
    as_normal = [
        torch.distributions.Normal(
            alpha * x.mean.double(), math.sqrt(sigma**2 + alpha**2 * x.variance)
        )
        for x in (p, q)
    ]
    expected = float(torch.distributions.kl_divergence(*as_normal).mean())
    assert gaussian_kl(p, q, alpha=alpha, sigma=sigma) == pytest.approx(expected, rel=1e-12)
    assert gaussian_kl(p, p, alpha=alpha, sigma=sigma) == 0.0


def test_marginal_kl_agrees_with_torch():
    data = moments(clips(50))
    init, alpha, sigma = AnalyticInit(torch.full(SHAPE, 0.5), 0.3), 0.6, 0.8
    true = torch.distributions.Normal(
        alpha * data.mean, torch.sqrt(sigma**2 + alpha**2 * data.position_variance)
    )
    other = torch.distributions.Normal(
        alpha * init.mean.double(), math.sqrt(sigma**2 + alpha**2 * 0.3)
    )
    expected = float(torch.distributions.kl_divergence(true, other).mean())
    assert marginal_kl(data, init, alpha=alpha, sigma=sigma) == pytest.approx(expected, rel=1e-12)
    plain = torch.distributions.Normal(torch.zeros(SHAPE, dtype=torch.float64), sigma)
    expected = float(torch.distributions.kl_divergence(true, plain).mean())
    assert marginal_kl(data, None, alpha=alpha, sigma=sigma) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(
    shift=st.floats(-0.5, 0.5),
    factor=st.floats(0.5, 2.0),
    alpha=st.floats(0.05, 1.0),
    sigma=st.floats(0.1, 50.0),
)
def test_analytic_init_is_the_optimum(shift, factor, alpha, sigma):
    """No other isotropic Gaussian is nearer; fails if the variance were not tr(Cov) / d."""
    data = moments(clips(20))
    best = AnalyticInit.from_moments(data)
    at = marginal_kl(data, best, alpha=alpha, sigma=sigma)
    other = AnalyticInit(best.mean + shift, best.variance * factor)
    assert at <= marginal_kl(data, other, alpha=alpha, sigma=sigma) + 1e-12
    assert at <= marginal_kl(data, None, alpha=alpha, sigma=sigma) + 1e-12


def test_the_curve_of_how_many_clips_falls_as_one_over_n():
    parts = [moments(part) for part in clips(4096, 3).split(16)]
    curve = dict(kl_curve([LatentMoments(), *parts], alpha=1.0, sigma=1.0))
    assert list(curve)[:3] == [16, 32, 48]
    assert max(curve) == 4080
    assert curve[64] < curve[16]
    mean = {n: sum(kl_at(n, seed) for seed in range(30)) / 30 for n in (32, 128)}
    assert mean[32] / mean[128] == pytest.approx(4.0, rel=0.35)


def kl_at(count, seed):
    parts = [moments(clips(count, 100 + seed)), moments(clips(20_000 // 10, 7))]
    return kl_curve(parts, alpha=1.0, sigma=1.0)[0][1]


def test_what_cannot_be_compared_is_refused():
    data = moments(clips(3))
    init = AnalyticInit.from_moments(data)
    other = AnalyticInit(torch.zeros(1, 1, 2, 4), 1.0)
    with pytest.raises(DataError, match="one shape"):
        gaussian_kl(init, other, alpha=1.0, sigma=1.0)
    with pytest.raises(DataError, match="init must have the shape"):
        marginal_kl(data, other, alpha=1.0, sigma=1.0)
    with pytest.raises(DataError, match="sigma must be > 0"):
        marginal_kl(data, init, alpha=1.0, sigma=0.0)
    with pytest.raises(DataError, match="no width"):
        gaussian_kl(AnalyticInit(torch.zeros(SHAPE), 0.0), init, alpha=1.0, sigma=0.0)
    with pytest.raises(DataError, match="at least 2 parts"):
        kl_curve([data], alpha=1.0, sigma=1.0)
