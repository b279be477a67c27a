import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cil import ConfigError, EDMSchedule, Parameterization, VPSchedule, as_denoiser
from cil.parameterization import (
    denoised_scales,
    edm_weight,
    input_scale,
    to_denoised,
    to_prediction,
    training_target,
)


def scales(parameterization, x):
    """alpha and sigma of the parameterisation's own schedule, for x in (0, 1)."""
    x = torch.tensor([x, 0.5], dtype=torch.float64)
    if parameterization is Parameterization.EDM:
        return torch.ones_like(x), torch.exp(8 * x - 5)
    if parameterization is Parameterization.FLOW:
        return 1 - x, x
    return torch.cos(x * 1.5), torch.sin(x * 1.5)


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("parameterization", list(Parameterization))
@given(x=st.floats(0.02, 0.98), sigma_data=st.floats(0.3, 2.0))
def test_prediction_to_denoised_and_back_is_the_identity(parameterization, x, sigma_data):
    alpha, sigma = scales(parameterization, x)
    kwargs = {"alpha": alpha, "sigma": sigma, "sigma_data": sigma_data}
    prediction, noisy = draw(0), draw(1)
    denoised = to_denoised(prediction, noisy, parameterization, **kwargs)
    back = to_prediction(denoised, noisy, parameterization, **kwargs)
    torch.testing.assert_close(back, prediction, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("parameterization", list(Parameterization))
@given(x=st.floats(0.02, 0.98), sigma_data=st.floats(0.3, 2.0))
def test_the_target_means_the_clean_latents(parameterization, x, sigma_data):
    alpha, sigma = scales(parameterization, x)
    kwargs = {"alpha": alpha, "sigma": sigma, "sigma_data": sigma_data}
    clean, noise = draw(2), draw(3)
    noisy = alpha[:, None, None] * clean + sigma[:, None, None] * noise
    target = training_target(clean, noise, parameterization, **kwargs)
    denoised = to_denoised(target, noisy, parameterization, **kwargs)
    torch.testing.assert_close(denoised, clean, rtol=1e-9, atol=1e-9)


def test_edm_scalings_are_those_of_svd():
    s = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    skip, out = denoised_scales(Parameterization.EDM, torch.ones_like(s), s)
    torch.testing.assert_close(skip, 1 / (s**2 + 1))
    torch.testing.assert_close(out, -s / (s**2 + 1).sqrt())
    torch.testing.assert_close(input_scale(Parameterization.EDM, s), 1 / (s**2 + 1).sqrt())
    torch.testing.assert_close(EDMSchedule().network_time(s), s.log() / 4)


@given(sigma_data=st.floats(0.3, 2.0))
def test_edm_weight_makes_the_loss_of_the_prediction_plain(sigma_data):
    s = torch.tensor([0.01, 0.5, 80.0], dtype=torch.float64)
    _, out = denoised_scales(Parameterization.EDM, torch.ones_like(s), s, sigma_data)
    torch.testing.assert_close(edm_weight(s, sigma_data) * out**2, torch.ones_like(s))


def test_a_network_becomes_a_denoiser():
    seen = {}

    def network(scaled, time):
        seen["scaled"], seen["time"] = scaled, time
        return torch.zeros_like(scaled)

    denoiser = as_denoiser(network, EDMSchedule(), Parameterization.EDM)
    noisy, sigma = torch.ones(2, 3, 1, 4, 4), torch.tensor([1.0, 3.0])
    denoised = denoiser(noisy, sigma)
    torch.testing.assert_close(denoised[:, 0, 0, 0, 0], torch.tensor([0.5, 0.1]))
    torch.testing.assert_close(seen["scaled"][:, 0, 0, 0, 0], (1 + sigma**2).rsqrt())
    torch.testing.assert_close(seen["time"], sigma.log() / 4)


def test_epsilon_cannot_be_sampled_where_alpha_is_zero():
    with pytest.raises(ConfigError, match=r"alpha is 0 at.*use 'v_prediction'"):
        as_denoiser(
            lambda scaled, time: scaled,
            VPSchedule(zero_terminal_snr=True),
            Parameterization.EPSILON,
        )


@pytest.mark.parametrize(
    ("schedule", "parameterization", "level"),
    [
        (VPSchedule(zero_terminal_snr=True), Parameterization.V_PREDICTION, 999),
        (VPSchedule(), Parameterization.EPSILON, 500),
    ],
)
def test_vp_denoiser_finds_the_clean_latents(schedule, parameterization, level):
    clean, noise = draw(2)[:1], draw(3)[:1]
    level = torch.tensor([level])
    alpha, sigma = schedule.scales(level)
    target = training_target(clean, noise, parameterization, alpha=alpha, sigma=sigma)
    denoiser = as_denoiser(lambda scaled, time: target, schedule, parameterization)
    torch.testing.assert_close(
        denoiser(alpha * clean + sigma * noise, level), clean, rtol=1e-5, atol=1e-5
    )
