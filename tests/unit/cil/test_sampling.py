import pytest
import torch

from cil import (
    AnalyticInit,
    ConfigError,
    DataError,
    VPSchedule,
    ddim,
    ddim_timesteps,
    euler,
    flow_times,
    karras_sigmas,
)


def test_karras_sigmas_have_their_ends():
    sigmas = karras_sigmas(25, 700.0, 0.002, 7.0)
    assert sigmas.shape == (26,)
    assert sigmas[0] == 700.0
    assert float(sigmas[-2]) == pytest.approx(0.002)
    assert sigmas[-1] == 0.0
    assert karras_sigmas(1, 5.0).tolist() == [5.0, 0.0]


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"num_steps": 0, "sigma_max": 1.0}, "num_steps"),
        ({"num_steps": 5, "sigma_max": 0.001}, "sigma_max"),
        ({"num_steps": 5, "sigma_max": 1.0, "sigma_min": 0.0}, "sigma_min"),
        ({"num_steps": 5, "sigma_max": 1.0, "rho": -1.0}, "rho"),
    ],
)
def test_bad_sigmas_are_refused(kwargs, name):
    with pytest.raises(ConfigError, match=f"{name} must be .* got"):
        karras_sigmas(**kwargs)


@pytest.mark.parametrize("start", [700.0, 20.0, 2.0])
def test_euler_reaches_the_gaussian_from_any_start(start):
    """From AnalyticInit's Gaussian; fails when the start is N(0, sigma^2 I) at a small sigma."""
    mean = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(1, 1, 4, 6)
    variance = 0.25

    def denoiser(noisy, sigma):
        s2 = (sigma**2).reshape(-1, 1, 1, 1, 1)
        return (variance * noisy + s2 * mean) / (variance + s2)

    noise = torch.randn(
        4000, 1, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    sigmas = karras_sigmas(160, start)
    begin = AnalyticInit(mean, variance).draw(noise, alpha=1.0, sigma=start)
    end = euler(denoiser, begin, sigmas)
    assert float((end.mean(0) - mean).abs().max()) < 0.05
    assert float(end.var(0).mean()) == pytest.approx(variance, rel=0.05)
    if start == 2.0:
        wrong = euler(denoiser, start * noise, sigmas)
        assert float((wrong.mean(0) - mean).abs().max()) > 0.3


def test_callback_sees_every_step():
    seen = []
    sigmas = karras_sigmas(4, 10.0)
    euler(
        lambda noisy, sigma: noisy * 0,
        torch.ones(2, 1, 1, 2, 2),
        sigmas,
        callback=lambda step, latents, denoised: seen.append((step, float(latents.max()))),
    )
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    for (_, value), sigma in zip(seen, sigmas[1:], strict=True):
        assert value == pytest.approx(float(sigma) / 10.0, abs=1e-6)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -1.0]])
def test_sigmas_must_decrease(sigmas):
    with pytest.raises(ConfigError, match="sigmas must be"):
        euler(lambda noisy, sigma: noisy, torch.zeros(1, 1, 1, 2, 2), sigmas)


def test_latents_must_be_video():
    with pytest.raises(DataError, match="B F C H W"):
        euler(lambda noisy, sigma: noisy, torch.zeros(1, 1, 2, 2), [1.0, 0.0])


def test_ddim_timesteps_start_where_they_should():
    trailing = ddim_timesteps(50, 940)
    assert trailing[0] == 939
    assert len(trailing) == 50
    assert len(ddim_timesteps(50, 940, "uniform")) == 53
    assert ddim_timesteps(5, 1000, "uniform").tolist() == [801, 601, 401, 201, 1]
    assert ddim_timesteps(1000, 1000, "uniform")[0] == 999
    assert ddim_timesteps(1000, 1000).tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ((50, 0), "start"),
        ((50, 1001), "start"),
        ((0, 940), "num_steps"),
        ((941, 940), "num_steps"),
        ((50, 940, "linspace"), "spacing"),
    ],
)
def test_ddim_timesteps_outside_the_schedule_are_refused(args, name):
    with pytest.raises(ConfigError, match=f"{name} must be .* got"):
        ddim_timesteps(*args)


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"timesteps": []}, "timesteps"),
        ({"timesteps": [1, 2]}, "timesteps"),
        ({"timesteps": [1000, 2]}, "timesteps"),
        ({"timesteps": [2, -1]}, "timesteps"),
        ({"eta": 1.5}, "eta"),
        ({"eta": 0.5}, "noise"),
    ],
)
def test_ddim_refuses_what_cannot_be(kwargs, name):
    good = {"timesteps": [5, 2], "schedule": VPSchedule()}
    with pytest.raises(ConfigError, match=f"{name} must be"):
        ddim(lambda noisy, level: noisy, torch.zeros(1, 1, 1, 2, 2), **(good | kwargs))


def test_flow_times_start_where_they_should():
    assert flow_times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = flow_times(4, start=0.9, shift=3.0)
    assert shifted[0] == pytest.approx(0.9)
    assert float(shifted[1]) > 0.9 * 0.75
    for kwargs in ({"num_steps": 0}, {"start": 0.0}, {"start": 1.2}, {"shift": 0.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(kwargs))} must be"):
            flow_times(**({"num_steps": 4} | kwargs))


def test_flow_euler_is_exact_for_a_straight_path():
    clean, noise = torch.randn(2, 1, 3, 2, 4, 4)
    end = euler(lambda noisy, t: clean, 0.2 * clean + 0.8 * noise, flow_times(3, start=0.8))
    torch.testing.assert_close(end, clean)


def test_levels_stay_exact_in_half_precision():
    seen = []
    sigmas = karras_sigmas(3, 700.0)
    euler(
        lambda noisy, sigma: (seen.append(sigma), noisy)[1],
        torch.zeros(1, 1, 1, 2, 2, dtype=torch.bfloat16),
        sigmas,
    )
    assert torch.equal(torch.cat(seen), sigmas[:-1])
