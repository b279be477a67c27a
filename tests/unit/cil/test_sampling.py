import pytest
import torch

from cil import AnalyticInit, ConfigError, DataError, euler, karras_sigmas


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
