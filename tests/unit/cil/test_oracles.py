"""Samplers and schedules against diffusers' schedulers, which nobody here wrote, at M = T."""

import pytest
import torch

from cil import (
    EDMSchedule,
    Parameterization,
    VPSchedule,
    as_denoiser,
    ddim,
    ddim_timesteps,
    euler,
    flow_times,
    karras_sigmas,
)

diffusers = pytest.importorskip("diffusers", reason="pip install -e '.[models]'")

SHAPE = (2, 3, 4, 5, 6)


def toy(seed=0, channels=4):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64) / 2
    start = torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    def network(scaled, time):
        time = time.double().reshape(-1, 1, 1, 1, 1)
        return torch.tanh(torch.einsum("oc,bfchw->bfohw", mix, scaled) + 0.1 * torch.sin(time))

    return network, start


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("sigma_max", [700.0, 20.0])
def test_euler_agrees_with_diffusers(sigma_max):
    network, start = toy()
    scheduler = diffusers.EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        sigma_min=0.002,
        sigma_max=sigma_max,
    )
    scheduler.set_timesteps(25)
    sigmas = karras_sigmas(25, sigma_max)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-6, atol=0)
    latents = expected = start * sigma_max
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(expected, timestep)
        prediction = network(scaled, timestep.expand(2))
        expected = scheduler.step(prediction, timestep, expected).prev_sample
    denoiser = as_denoiser(network, EDMSchedule(), Parameterization.EDM)
    got = euler(denoiser, latents, scheduler.sigmas)
    assert relative(got, expected) < 1e-6


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("spacing", "name"), [("uniform_trailing", "trailing"), ("uniform", "leading")]
)
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_ddim_agrees_with_diffusers(prediction, spacing, name, eta):
    network, start = toy()
    schedule = VPSchedule()
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction,
        timestep_spacing=name,
        steps_offset=1 if name == "leading" else 0,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-5, atol=0)
    # The scheduler's float32 table is off by 1e-6; what is compared from here on is the sampler.
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.final_alpha_cumprod = schedule.alphas_cumprod[0]
    scheduler.set_timesteps(20)
    timesteps = ddim_timesteps(20, 1000, spacing)
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(20, *SHAPE, generator=generator, dtype=torch.float64)
    expected = start
    for step, timestep in enumerate(scheduler.timesteps):
        expected = scheduler.step(
            network(expected, timestep.expand(2)),
            timestep,
            expected,
            eta=eta,
            variance_noise=noise[step] if eta else None,
        ).prev_sample

    def denoiser(noisy, level):
        a = schedule.alphas_cumprod[level].reshape(-1, 1, 1, 1, 1)
        output = network(noisy, level)
        if prediction == "epsilon":
            return (noisy - (1 - a).sqrt() * output) / a.sqrt()
        return a.sqrt() * noisy - (1 - a).sqrt() * output

    got = ddim(
        denoiser, start, timesteps, schedule=schedule, eta=eta, noise=lambda step: noise[step]
    )
    assert relative(got, expected) < 1e-6


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
def test_the_tables_of_a_schedule_agree_with_diffusers(beta_schedule, zero_snr):
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=zero_snr,
    )
    ours = VPSchedule(beta_schedule=beta_schedule, zero_terminal_snr=zero_snr).alphas_cumprod
    torch.testing.assert_close(
        ours.sqrt().float(), scheduler.alphas_cumprod.sqrt(), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_agrees_with_diffusers(shift):
    network, start = toy()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    # diffusers shifts the sigmas that it is given
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 0.0, 21)[:-1].numpy())
    times = flow_times(20, shift=shift)
    torch.testing.assert_close(times, scheduler.sigmas, rtol=1e-6, atol=1e-7)
    expected = start.float()
    for timestep, t in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        velocity = network(expected.double(), t.expand(2)).float()
        expected = scheduler.step(velocity, timestep, expected).prev_sample

    def denoiser(noisy, t):
        return noisy - t.reshape(-1, 1, 1, 1, 1) * network(noisy, t)

    got = euler(denoiser, start, scheduler.sigmas)
    assert relative(got, expected.double()) < 1e-6
