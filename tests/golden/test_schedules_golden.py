"""Schedules, DDIM, Euler and noising of ddim_A, ddim_videocrafter_A, euler_A, svd_sampler."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cil import (
    EDMSchedule,
    Parameterization,
    VPSchedule,
    as_denoiser,
    ddim,
    ddim_timesteps,
    euler,
    guide,
    karras_sigmas,
)
from cil.parameterization import training_target

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
ZERO_SNR = VPSchedule(zero_terminal_snr=True, base_scale=0.7)
PLAIN = VPSchedule(base_scale=0.7)


@pytest.fixture(scope="module")
def ddim_a(golden):
    return load_file(golden / "ddim_A.safetensors"), json.loads(
        (golden / "ddim_A.json").read_text()
    )


@pytest.fixture(scope="module")
def videocrafter(golden):
    tensors = load_file(golden / "ddim_videocrafter_A.safetensors")
    return tensors, json.loads((golden / "ddim_videocrafter_A.json").read_text())


def test_alphas_cumprod_and_dynamic_rescale(ddim_a):
    tensors, _ = ddim_a
    for schedule, name in ((ZERO_SNR, "alphas_cumprod_zsnr"), (PLAIN, "alphas_cumprod_plain")):
        torch.testing.assert_close(
            schedule.alphas_cumprod.float(), tensors[name], rtol=1e-6, atol=0
        )
    assert float(ZERO_SNR.alphas_cumprod[-1]) == 0.0
    torch.testing.assert_close(
        PLAIN.clean_scales.float(), tensors["scale_arr"][:1000], rtol=1e-6, atol=0
    )
    betas = 1.0 - ZERO_SNR.alphas_cumprod[1:] / ZERO_SNR.alphas_cumprod[:-1]
    torch.testing.assert_close(betas.float(), tensors["betas_zsnr"][1:], rtol=1e-5, atol=0)


def test_noising_and_v_target(ddim_a):
    tensors, _ = ddim_a
    timesteps, noise = tensors["noising.t"], tensors["noising.noise"]

    def noising(schedule):
        alpha, sigma = schedule.scales(timesteps)
        clean = schedule.clean_scale(timesteps).reshape(-1, 1, 1, 1, 1) * tensors["noising.x0"]
        target = training_target(
            clean, noise, Parameterization.V_PREDICTION, alpha=alpha, sigma=sigma
        )
        wide = (x.reshape(-1, 1, 1, 1, 1) for x in (alpha, sigma))
        return sum(a * x for a, x in zip(wide, (clean, noise), strict=True)), target

    noisy, target = noising(ZERO_SNR)
    torch.testing.assert_close(noisy, tensors["noising.x_t_zsnr_scaled"], **CLOSE)
    torch.testing.assert_close(target, tensors["noising.v_zsnr_scaled"], **CLOSE)
    noisy, _ = noising(VPSchedule())
    torch.testing.assert_close(noisy, tensors["noising.x_t_plain"], **CLOSE)


def test_timesteps_visited(ddim_a):
    _, data = ddim_a
    assert len(data["timesteps_visited"]) >= 24
    for name, expected in data["timesteps_visited"].items():
        spacing, steps, start = name.split("|")
        got = ddim_timesteps(int(steps[2:]), int(start[2:]), spacing)
        assert got.tolist() == expected, name


def toy(tensors, case, parameterization, schedule, *, matrix="A", bias="b"):
    """The toy network of the trajectories, guided as the case says, as a denoiser."""

    def predict(noisy, timesteps, condition):
        mixed = torch.einsum("oc,bcfhw->bofhw", tensors[matrix], noisy)
        time = (timesteps.float() / 1000).reshape(-1, 1, 1, 1, 1)
        return mixed + time * tensors[bias].reshape(1, -1, 1, 1, 1) + 0.5 * condition

    condition = tensors["traj.cond" if "traj.cond" in tensors else "cond"]

    def network(noisy, timesteps):
        prediction = predict(noisy, timesteps, condition)
        scale = case.get("unconditional_guidance_scale", 1.0)
        if scale == 1.0:
            return prediction
        without = predict(noisy, timesteps, torch.zeros_like(condition))
        return guide(prediction, without, scale, rescale=case.get("guidance_rescale", 0.0))

    return as_denoiser(network, schedule, parameterization)


def run_ddim(denoiser, latents, timesteps, **kwargs):
    visited, denoised = [], []
    ddim(
        denoiser,
        latents,
        timesteps,
        callback=lambda step, x, x0: (visited.append(x), denoised.append(x0)),
        **kwargs,
    )
    return torch.stack(visited), torch.stack(denoised)


def assert_trajectory(got, expected):
    """1e-5 of the size of the latents, which guidance at 7.5 and 12 lets grow over the steps."""
    scale = expected.abs().amax(dim=tuple(range(1, expected.ndim)), keepdim=True)
    assert float(((got - expected).abs() / scale).max()) < 1e-5


@pytest.mark.parametrize("name", ["plain", "cfg_M940", "uniform_M900", "eta1_M940"])
def test_dynamicrafter_trajectories(ddim_a, name):
    tensors, data = ddim_a
    case = data["trajectories"][name]
    timesteps = ddim_timesteps(case["S"], case["ddpm_from"], case["timestep_spacing"])
    assert timesteps.tolist() == case["timesteps"]
    noise = tensors.get(f"traj.{name}.noise")
    got, denoised = run_ddim(
        toy(
            tensors,
            case,
            Parameterization.V_PREDICTION,
            ZERO_SNR,
            matrix="traj.A",
            bias="traj.b",
        ),
        tensors["traj.x_T"],
        timesteps,
        schedule=ZERO_SNR,
        eta=case["eta"],
        noise=None if noise is None else lambda step: noise[step],
    )
    assert_trajectory(got, tensors[f"traj.{name}.x"])
    assert_trajectory(denoised, tensors[f"traj.{name}.pred_x0"])


@pytest.mark.parametrize("name", ["plain_M1000", "cfg_eta1"])
def test_videocrafter_trajectories(videocrafter, name):
    tensors, data = videocrafter
    case = data["trajectories"][name]
    timesteps = ddim_timesteps(case["S"], 1000, "uniform")
    assert timesteps.tolist() == case["timesteps"]
    noise = tensors.get(f"{name}.noise")
    got, denoised = run_ddim(
        toy(tensors, case, Parameterization.EPSILON, PLAIN),
        tensors["x_T"],
        timesteps,
        schedule=PLAIN,
        eta=case["eta"],
        noise=None if noise is None else lambda step: noise[step],
        rescale_last=True,
    )
    assert_trajectory(got, tensors[f"{name}.x"])
    unscaled = denoised / torch.tensor(case["scale_prev"]).reshape(-1, 1, 1, 1, 1, 1)
    assert_trajectory(unscaled, tensors[f"{name}.pred_x0"])


def test_videocrafter_noising_and_the_start_that_the_release_ignores(videocrafter):
    tensors, data = videocrafter
    timesteps = tensors["noising.t"]
    alpha, sigma = (x.reshape(-1, 1, 1, 1, 1) for x in PLAIN.scales(timesteps))
    scale = PLAIN.clean_scale(timesteps).reshape(-1, 1, 1, 1, 1)
    noisy = alpha * scale * tensors["noising.x0"] + sigma * tensors["noising.noise"]
    torch.testing.assert_close(noisy, tensors["noising.x_t"], **CLOSE)
    # Released: M = 940 visits what M = 1000 visits. Intended, and here: no level above M - 1.
    ignored = data["trajectories"]["plain_M940_is_ignored"]["timesteps"]
    assert ignored == ddim_timesteps(10, 1000, "uniform").tolist()
    assert data["S50_timesteps_M_any"] == ddim_timesteps(50, 1000, "uniform").tolist()
    for spacing in ("uniform", "uniform_trailing"):
        timesteps = ddim_timesteps(50, 940, spacing)
        assert int(timesteps[0]) <= 939
        seen = []
        ddim(
            lambda noisy, level, seen=seen: (seen.append(int(level[0])), noisy * 0)[1],
            tensors["x_T"],
            timesteps,
            schedule=PLAIN,
        )
        assert seen == timesteps.tolist()


@pytest.mark.parametrize("sigma_max", [700, 100, 60, 20])
def test_svd_sigmas_and_timesteps(golden, sigma_max):
    case = json.loads((golden / "svd_sampler_analytic_A.json").read_text())["euler"][str(sigma_max)]
    sigmas = karras_sigmas(25, float(sigma_max), 0.002, 7.0)
    expected = torch.tensor(case["sigmas"])
    torch.testing.assert_close(sigmas[: len(expected)], expected, rtol=1e-5, atol=0)
    assert len(expected) in (25, 26)
    torch.testing.assert_close(
        EDMSchedule().network_time(sigmas[:-1]), torch.tensor(case["timesteps"]), **CLOSE
    )


def test_svd_euler_trajectory(golden):
    tensors = load_file(golden / "euler_A.safetensors")
    sigmas = karras_sigmas(10, 100.0)
    torch.testing.assert_close(sigmas, tensors["sigmas"], rtol=1e-5, atol=0)
    inputs, visited = [], []

    def network(scaled, time):
        inputs.append(scaled)
        mixed = torch.einsum("oc,bfchw->bfohw", tensors["A"], scaled)
        return mixed + time.reshape(-1, 1, 1, 1, 1) * tensors["b"].reshape(1, 1, -1, 1, 1)

    denoiser = as_denoiser(network, EDMSchedule(), Parameterization.EDM)
    euler(
        denoiser,
        tensors["x_init"],
        sigmas,
        callback=lambda step, x, x0: visited.append(x),
    )
    assert_trajectory(torch.stack(inputs), tensors["model_input"])
    assert_trajectory(torch.stack(visited), tensors["x"])
