"""Samplers with the exact denoiser of a Gaussian: they must reach its mean and covariance.

Analytic-Init's assumption holds exactly when the covariance is v I; a start from N(0, sigma^2 I)
at the same time must miss. The error of the discretisation is known for a Gaussian, so the bands
are bands of sampling error (6000 draws) and step size.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cil import (
    AnalyticInit,
    EDMSchedule,
    FlowSchedule,
    VPSchedule,
    ddim,
    ddim_timesteps,
    euler,
    flow_times,
    karras_sigmas,
)

MEAN = torch.linspace(-3.0, 3.0, 6, dtype=torch.float64).reshape(1, 1, 2, 3)
VARIANCE = 0.25


def gaussian_denoiser(schedule, scale=1.0):
    """E[scale * clean | noisy] for clean ~ N(MEAN, VARIANCE I)."""

    def denoiser(noisy, level):
        alpha, sigma = (x.double().reshape(-1, 1, 1, 1, 1) for x in schedule.scales(level))
        factor = schedule.clean_scale(level).double().reshape(-1, 1, 1, 1, 1) * scale
        mean, variance = factor * MEAN, factor**2 * VARIANCE
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (noisy - alpha * mean)

    return denoiser


def run(family, start, noise, analytic):
    init = AnalyticInit(MEAN, VARIANCE) if analytic else AnalyticInit(MEAN * 0, 0.0)
    if family == "edm":
        schedule = EDMSchedule(sigma_max=80.0)
        level = schedule.start_level(start)
        begin = init.start(noise, schedule=schedule, level=level)
        return euler(gaussian_denoiser(schedule), begin, karras_sigmas(300, level))
    if family == "flow":
        schedule = FlowSchedule(shift=2.0)
        level = schedule.start_level(start)
        begin = init.start(noise, schedule=schedule, level=level)
        return euler(gaussian_denoiser(schedule), begin, flow_times(300, level, shift=2.0))
    schedule = VPSchedule(base_scale=0.7 if family == "vp-rescale" else 1.0)
    timesteps = ddim_timesteps(250, round(start * 1000))
    begin = init.start(noise, schedule=schedule, level=int(timesteps[0]))
    return ddim(gaussian_denoiser(schedule), begin, timesteps, schedule=schedule, rescale_last=True)


def errors(samples):
    flat = samples.flatten(1) - MEAN.flatten()
    covariance = flat.T @ flat / flat.shape[0] - torch.outer(flat.mean(0), flat.mean(0))
    wanted = VARIANCE * torch.eye(6, dtype=torch.float64)
    return float(flat.mean(0).abs().max()), float((covariance - wanted).abs().max())


NOISE = torch.randn(
    6000, 1, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
)


@pytest.mark.parametrize("family", ["edm", "vp", "vp-rescale", "flow"])
@settings(max_examples=5, deadline=None)
@given(start=st.floats(0.4, 0.99))
def test_analytic_init_reaches_the_data_from_any_start(family, start):
    """Fails when variance, alpha, the clean scale or a sampler step is off by a few per cent."""
    mean_error, covariance_error = errors(run(family, start, NOISE, analytic=True))
    assert mean_error < 0.06
    assert covariance_error < 0.03


@pytest.mark.parametrize(
    ("family", "start"), [("edm", 0.5), ("vp", 0.6), ("vp-rescale", 0.6), ("flow", 0.5)]
)
def test_a_start_from_noise_alone_misses_the_data(family, start):
    mean_error, _ = errors(run(family, start, NOISE, analytic=False))
    assert mean_error > 0.2


def test_stochastic_ddim_reaches_the_data_too():
    schedule = VPSchedule()
    timesteps = ddim_timesteps(250, 800)
    begin = AnalyticInit(MEAN, VARIANCE).start(NOISE, schedule=schedule, level=799)
    generator = torch.Generator().manual_seed(1)

    def noise(step):
        return torch.randn(NOISE.shape, dtype=torch.float64, generator=generator)

    samples = ddim(
        gaussian_denoiser(schedule), begin, timesteps, schedule=schedule, eta=1.0, noise=noise
    )
    mean_error, covariance_error = errors(samples)
    assert mean_error < 0.06
    assert covariance_error < 0.03
